"""GPUs and networks as published figures, and the coefficients that turn peaks into what programs reach."""

import difflib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from megatron_sky.config import strict_yaml
from megatron_sky.errors import ConfigError, DataError, Problem
from megatron_sky.files import read_text

_HERE = Path(__file__).parent
GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """Published figures of one GPU: dense tensor-core peaks in TFLOP/s by format, memory, links."""

    name: str
    architecture: str
    tflops: dict[str, float]
    memory_gib: float
    memory_gb_per_s: float
    link_gb_per_s: float
    """To the GPUs of the same node, one direction."""
    node_gb_per_s: float
    """Of a node's network, one direction, as usually built."""
    watts: float
    num_sms: int
    gpus_per_node: int
    source: str

    def peak(self, kind: str) -> float:
        """FLOP/s of a format; one that the GPU lacks runs in the next wider one."""
        for each in _wider(kind):
            if each in self.tflops:
                return self.tflops[each] * 1e12
        raise AssertionError(f"{self.name} has no peak at all")


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind in nodes."""

    gpu: Gpu
    gpus_per_node: int
    node_gb_per_s: float


@dataclass(frozen=True)
class Coefficients:
    """What programs reach of the peaks (`coefficients.yaml` says how each was set)."""

    values: dict[str, Any] = field(hash=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def of(self, name: str, *kinds: str) -> float:
        """The coefficient for the first of these kinds that has one, else its default."""
        table = self.values[name]
        return next((table[kind] for kind in kinds if kind in table), table["default"])


def _wider(kind: str) -> list[str]:
    ways = {"nvfp4": ["nvfp4", "fp8", "bf16", "fp16"], "mxfp8": ["fp8", "bf16", "fp16"], "fp8": ["fp8", "bf16", "fp16"]}
    return ways.get(kind, ["fp32"] if kind == "fp32" else [kind, "fp16"])


@cache
def coefficients() -> Coefficients:
    raw = _read(_HERE / "coefficients.yaml")
    return Coefficients({name: entry["value"] for name, entry in raw.items()})


@cache
def gpus() -> dict[str, Gpu]:
    """The GPUs of the hardware file, by name."""
    return {name: Gpu(name=name, **entry) for name, entry in _read(_HERE / "hardware.yaml").items()}


def find_gpu(name: str) -> Gpu:
    """By name, or from a file of one GPU with the fields of the hardware file's entries. Raises ConfigError."""
    if name.endswith((".yaml", ".yml")):
        return _own_gpu(Path(name))
    known, wanted = gpus(), name.strip().lower()
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    fix = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(
        Problem("--gpu", "is not in the hardware file", f"{fix}known: {', '.join(known)}; or a .yaml file", name)
    )


def _own_gpu(path: Path) -> Gpu:
    if not path.is_file():
        raise ConfigError(
            Problem("--gpu", "is no file", "name a GPU, or a file of one as hardware.yaml has them", str(path))
        )
    entry = _read(path)
    wanted = {each.name: each.type for each in fields(Gpu)}
    problems = [
        Problem(f"{path}: {name}", "is missing", "give it, as in hardware.yaml") for name in wanted.keys() - entry
    ]
    problems += [
        Problem(f"{path}: {name}", "is no field", f"known: {', '.join(wanted)}") for name in entry.keys() - wanted
    ]
    texts = ("name", "architecture", "source")
    numbers = [name for name in wanted if name not in (*texts, "tflops") and name in entry]
    for name in numbers:
        if isinstance(entry[name], bool) or not isinstance(entry[name], int | float) or entry[name] <= 0:
            problems.append(Problem(f"{path}: {name}", "must be a number above 0", value=entry[name]))
    peaks = entry.get("tflops", {"bf16": 1})
    if (
        not isinstance(peaks, dict)
        or not peaks
        or not all(isinstance(peak, int | float) and peak > 0 for peak in peaks.values())
    ):
        problems.append(Problem(f"{path}: tflops", "must be TFLOP/s by format", "as {bf16: 312, fp16: 312}", peaks))
    elif not set(peaks) & {"bf16", "fp16"}:
        problems.append(Problem(f"{path}: tflops", "lacks bf16 and fp16", "give one of them", peaks))
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.where))
    return Gpu(**entry)


def cluster_of(gpu: Gpu, gpus_per_node: int | None = None, node_gb_per_s: float | None = None) -> Cluster:
    """The GPU in nodes as usually built, where nothing else is said."""
    per_node = gpus_per_node or gpu.gpus_per_node
    usual = gpu.node_gb_per_s * per_node / gpu.gpus_per_node
    return Cluster(gpu, per_node, node_gb_per_s or usual)


def _read(path: Path) -> dict:
    content = strict_yaml.load(read_text(path), str(path))
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be a mapping of names")
    return content
