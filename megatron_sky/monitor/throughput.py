"""Speed from counts and seconds: tokens/s, TFLOP/s, MFU, and the time a run has left.

Pure arithmetic. MFU needs the device's peak; it comes from a table of published figures matched by the exact device
name, and a name that is not in it (a MIG slice, a laptop part, a special build) gives no MFU rather than a wrong one.
`monitor.peak_tflops` in the recipe fills the gap.
"""

import re
from dataclasses import dataclass
from typing import Literal

_DECAY = 0.95  # per step, of the sums behind the time left: a memory of about 20 steps


@dataclass(frozen=True)
class GpuPeak:
    """Dense tensor-core peaks with fp32 accumulation, in TFLOP/s; None where the device has no such format."""

    bf16: float | None
    fp16: float
    fp8: float | None


@dataclass(frozen=True)
class _Row:
    required: frozenset[str]
    optional: frozenset[str]
    peak: GpuPeak


def _row(name: str, optional: str, half: float, fp8: float | None = None, *, bf16: bool = True) -> _Row:
    return _Row(frozenset(name.split()), frozenset(optional.split()), GpuPeak(half if bf16 else None, half, fp8))


# Words of the device name: those that must be there, then those that may. Dense figures: where a data sheet prints
# them with sparsity, half of it.
_TABLE = (
    # NVIDIA V100 data sheet: 125 (SXM2), 112 (PCIe) of mixed-precision tensor cores; no bf16.
    _row("v100", "sxm2 sxm3 16gb 32gb", 125, bf16=False),
    _row("v100 pcie", "16gb 32gb", 112, bf16=False),
    # NVIDIA T4 data sheet: 65; no bf16.
    _row("t4", "16gb", 65, bf16=False),
    # NVIDIA A100 data sheet: 312 on SXM and PCIe. A800: same die and clocks, NVLink cut to 400 GB/s; the Skywork-13B
    # report, table 10, implies 312 (182.6 TFLOP/s at 58.5 % MFU).
    _row("a100", "sxm sxm4 pcie pcie4 40gb 80gb", 312),
    _row("a800", "sxm sxm4 pcie 40gb 80gb", 312),
    # NVIDIA A30, A40 and A10 data sheets; NVIDIA Ampere GA102 white paper, appendix (RTX A6000, RTX 3090).
    _row("a30", "24gb", 165),
    _row("a40", "48gb", 149.7),
    _row("a10", "24gb", 125),
    _row("rtx a6000", "48gb", 154.8),
    _row("a6000", "48gb", 154.8),
    _row("rtx 3090", "24gb", 71),
    # NVIDIA L4, L40 and L40S data sheets.
    _row("l4", "24gb", 121, 242.5),
    _row("l40", "48gb", 181.05, 362),
    _row("l40s", "48gb", 362.05, 733),
    # NVIDIA Ada GPU architecture white paper, appendix A (RTX 4090: half rate with fp32 accumulation), and the
    # RTX 6000 Ada data sheet (1,457 fp8 with sparsity).
    _row("rtx 4090", "24gb", 165.2, 330.3),
    _row("rtx 6000 ada", "48gb", 364.25, 728.5),
    # NVIDIA H100 data sheet: SXM 1,979 / 3,958, PCIe 1,513 / 3,026, NVL 1,671 / 3,341, all with sparsity. A name
    # without a form factor is the SXM part ("NVIDIA H100 80GB HBM3").
    _row("h100", "sxm sxm5 80gb hbm3", 989.4, 1978.9),
    _row("h100 pcie", "80gb hbm2e", 756, 1513),
    _row("h100 nvl", "94gb hbm3", 835.5, 1670.5),
    # H800: the H100's die and clocks with NVLink cut to 400 GB/s (fp64 apart).
    _row("h800", "sxm sxm5 80gb hbm3", 989.4, 1978.9),
    _row("h800 pcie", "80gb", 756, 1513),
    # H20: 148 dense fp16/bf16 and 296 fp8/int8, as server vendors print NVIDIA's brief.
    _row("h20", "sxm sxm5 96gb 141gb hbm3 hbm3e", 148, 296),
    # NVIDIA H200 data sheet: SXM as the H100 SXM, NVL as the H100 NVL. GH200 data sheet: as the H100 SXM.
    _row("h200", "sxm sxm5 141gb hbm3e", 989.4, 1978.9),
    _row("h200 nvl", "141gb hbm3e", 835.5, 1670.5),
    _row("gh200", "480gb 96gb 144gb hbm3 hbm3e", 989.4, 1978.9),
    # NVIDIA Blackwell data sheets: HGX B200 2,250 / 4,500 and GB200 2,500 / 5,000, per GPU.
    _row("b200", "sxm sxm6 180gb 192gb hbm3e", 2250, 4500),
    _row("gb200", "186gb 192gb hbm3e", 2500, 5000),
    # torchtitan's table has 2,500 bf16; no published dense fp8 figure was checked.
    _row("gb300", "", 2500),
)
_NOISE = {"nvidia", "tesla", "geforce", "generation"}


def gpu_peak(device_name: str) -> GpuPeak | None:
    """Published peaks of a device by its CUDA name, or a short one (`"a800"`, `"h100 pcie"`); None if not known."""
    words = set(re.split(r"[\s\-_]+", device_name.strip().lower())) - _NOISE
    for row in _TABLE:
        if row.required <= words <= row.required | row.optional:
            return row.peak
    return None


def peak_tflops(device_name: str, dtype: Literal["bf16", "fp16", "fp8", "fp32"]) -> float | None:
    """Peak dense TFLOP/s of one device for matmuls in `dtype`; None where it isn't known.

    fp32 has none: whether its matmuls run as fp32 or as TF32 is a setting, so there is no one figure.
    """
    peak = gpu_peak(device_name)
    return None if peak is None or dtype == "fp32" else getattr(peak, dtype)


@dataclass(frozen=True)
class Speed:
    """One step's speed. `mfu` is a fraction (0.565), None without a known peak."""

    tokens_per_second: float
    tokens_per_second_per_gpu: float
    tflops_per_gpu: float
    mfu: float | None


class Throughput:
    """Turns each step's tokens and seconds into a speed, and keeps a moving estimate of the time left.

    The estimate divides a decayed sum of tokens by the same decayed sum of seconds. It is therefore weighted by
    tokens, and stays right while the batch size ramps up; counting steps, or averaging rates, would not. The first
    step fed is left out, because it pays for start-up (kernel selection, allocation, first file reads).
    """

    def __init__(self, *, flops_per_token: float, world_size: int, peak_tflops: float | None = None):
        """`flops_per_token`: model FLOPs of one token, forward and backward. `peak_tflops`: of one device."""
        assert flops_per_token > 0 and world_size >= 1
        assert peak_tflops is None or peak_tflops > 0
        self._flops_per_token = flops_per_token
        self._world_size = world_size
        self._peak_tflops = peak_tflops
        self._steps = 0
        self._tokens = 0.0
        self._seconds = 0.0

    def step(self, *, tokens: int, seconds: float) -> Speed:
        """Take in one step: `tokens` over all ranks, in `seconds` of wall time."""
        assert tokens > 0 and seconds > 0, f"a step of {tokens} tokens in {seconds} s"
        self._steps += 1
        if self._steps > 1:
            self._tokens = self._tokens * _DECAY + tokens
            self._seconds = self._seconds * _DECAY + seconds
        rate = tokens / seconds
        tflops = rate * self._flops_per_token / self._world_size / 1e12
        return Speed(
            tokens_per_second=rate,
            tokens_per_second_per_gpu=rate / self._world_size,
            tflops_per_gpu=tflops,
            mfu=None if self._peak_tflops is None else tflops / self._peak_tflops,
        )

    def seconds_left(self, tokens_left: int) -> float | None:
        """Estimated seconds until `tokens_left` more tokens are consumed; None until a second step was fed."""
        if tokens_left <= 0:
            return 0.0
        return tokens_left * self._seconds / self._tokens if self._tokens else None
