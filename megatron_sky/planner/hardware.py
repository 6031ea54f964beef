"""GPUs and networks as published figures, and the coefficients that turn peaks into what programs reach."""

import difflib
import math
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from megatron_sky.config import strict_yaml
from megatron_sky.errors import ConfigError, DataError, Problem
from megatron_sky.files import read_text
from megatron_sky.planner.measured import Measured, Rates, read_measured

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
    num_sms: int
    gpus_per_node: int
    source: str
    watts: float | None = None
    """None: not known, and no energy is told."""
    shared: bool = False
    """Whether the ranks of a machine share it, as they do a CPU: cores and `memory_gib` are of the whole machine."""
    measured: Measured | None = field(default=None, hash=False)
    """What `plan --calibrate` measured; takes the place of the closed forms."""

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

    def rates(self, num_ranks: int) -> Rates | None:
        """What was measured with as many ranks on a machine as a job of `num_ranks` has there; None: nothing was."""
        return self.gpu.measured.at(min(num_ranks, self.gpus_per_node)) if self.gpu.measured else None

    def memory_gib(self, num_ranks: int) -> float:
        """Of one rank of a job of `num_ranks`."""
        return self.gpu.memory_gib / (min(num_ranks, self.gpus_per_node) if self.gpu.shared else 1)


@dataclass(frozen=True)
class Coefficients:
    """What programs reach of the peaks (`coefficients.yaml` says how each was set)."""

    values: dict[str, Any] = field(hash=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def on(self, gpu: Gpu) -> "Coefficients":
        """As they are where ranks share a CPU: the same cores compute and send, so that nothing hides."""
        return Coefficients(self.values | _NOTHING_HIDES) if gpu.shared else self

    def of(self, name: str, *kinds: str) -> float:
        """The coefficient for the first of these kinds that has one, else its default."""
        table = self.values[name]
        return next((table[kind] for kind in kinds if kind in table), table["default"])


_NOTHING_HIDES = {
    "tp_overlap": 0.0,
    "tp_backward_overlap": 0.0,
    "p2p_overlap": 0.0,
    "dp_overlap": 0.0,
    "collective_start_s": 0.0,
}


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
    known = {gpu_field.name: gpu_field.default for gpu_field in fields(Gpu)}
    needed = {name for name, default in known.items() if default is MISSING}
    problems = [Problem(name, "is missing", "give it, as in hardware.yaml") for name in needed - entry.keys()]
    problems += [Problem(name, "is no field", f"known: {', '.join(known)}") for name in entry.keys() - known]
    problems += _value_problems(entry)
    measured = None
    if entry.get("measured") is not None:
        measured, wrong = read_measured(entry["measured"], "measured")
        problems += wrong
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.where), of=str(path))
    return Gpu(**entry | {"measured": measured})


def _value_problems(entry: dict) -> list[Problem]:
    problems = []
    for name in ("name", "architecture", "source"):
        if name in entry and not isinstance(entry[name], str):
            problems.append(Problem(name, "must be a text", value=entry[name]))
    for name in ("memory_gib", "memory_gb_per_s", "link_gb_per_s", "node_gb_per_s", "watts"):
        if name in entry and not _is_positive(entry[name]) and not (name == "watts" and entry[name] is None):
            problems.append(Problem(name, "must be a number above 0", value=entry[name]))
    for name in ("num_sms", "gpus_per_node"):
        if name in entry and not (_is_positive(entry[name]) and isinstance(entry[name], int)):
            problems.append(Problem(name, "must be a whole number above 0", value=entry[name]))
    if not isinstance(entry.get("shared", False), bool):
        problems.append(Problem("shared", "must be true or false", value=entry["shared"]))
    peaks = entry.get("tflops", {"bf16": 1})
    if not isinstance(peaks, dict) or not peaks or not all(map(_is_positive, peaks.values())):
        problems.append(Problem("tflops", "must be TFLOP/s by format", "as {bf16: 312, fp16: 312}", peaks))
    elif not set(peaks) & {"bf16", "fp16"}:
        problems.append(Problem("tflops", "lacks bf16 and fp16", "give one of them", peaks))
    return problems


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


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
