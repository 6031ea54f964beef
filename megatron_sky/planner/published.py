"""Published measurements of training, and the predictions beside them.

A row is one operating point of a table that somebody printed (`published.csv`, with its source). What a page leaves out
is taken by rule, the same for every row (`_job` says each), so that a table of other rows can be tried: no coefficient
belongs to a model or a row.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.config.schema import ModelConfig
from megatron_sky.distributed.topology import Layout
from megatron_sky.errors import DataError
from megatron_sky.files import read_text
from megatron_sky.planner.hardware import Cluster, cluster_of, gpus
from megatron_sky.planner.job import Job, ProductFormat, Recompute, Sharding
from megatron_sky.planner.memory import peak_memory
from megatron_sky.planner.speed import step_seconds, tokens_per_second_per_gpu

OWN = Path(__file__).parent / "published.csv"
GB = 1e9  # the pages' unit of memory, where they say none
_WORDS = ("source", "notes", "sharding", "sequence_parallel", "recompute", "attention", "precision")
_NEEDED = ("num_layers", "hidden", "seq", "gpu", "nodes_or_gpus", "tp", "pp")
_SHARDING: dict[str, Sharding] = {"ddp": "none", "zero2": "zero2", "zero3": "zero3", "fsdp": "zero3"}
_RECOMPUTE: dict[str, Recompute] = {"full": "full", "selective": "selective"}
_FORMATS: tuple[ProductFormat, ...] = ("mxfp8", "nvfp4", "fp8")
_MICRO_BATCHES = 64  # a rank's, where a page leaves the global batch out


@dataclass(frozen=True)
class Row:
    """An operating point: what was measured, and what is predicted. None: not published."""

    id: str
    source: str
    job: Job
    tokens_per_s: float | None
    """Of one GPU."""
    memory_gb: float | None
    out_of_memory: bool

    def predicted_speed(self) -> float:
        return tokens_per_second_per_gpu(self.job, step_seconds(self.job))

    def predicted_memory(self) -> float:
        return peak_memory(self.job).total / GB


@dataclass(frozen=True)
class Errors:
    """Relative errors of some rows: (predicted - published) / published."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Of the absolute errors."""
        return sum(map(abs, self.values)) / len(self.values) if self.values else 0.0

    @property
    def bias(self) -> float:
        return sum(self.values) / len(self.values) if self.values else 0.0

    @property
    def worst(self) -> float:
        return max(self.values, key=abs) if self.values else 0.0


def read_rows(path: str | Path = OWN) -> tuple[list[Row], list[str]]:
    """(rows that can be predicted, what the others lack) of a CSV file with the columns of `published.csv`."""
    table = csv.DictReader(io.StringIO(read_text(path)))
    lacking = {"id", *_WORDS, *_NEEDED} - set(table.fieldnames or ())
    if lacking:
        raise DataError(
            f"{path}: has no column {', '.join(sorted(lacking))}\n  fix: name the columns as {OWN.name} does"
        )
    rows, passed = [], []
    for number, line in enumerate(table, 2):
        fields = {name: text or "" for name, text in line.items() if name is not None}
        if (
            _SHARDING.get(fields["sharding"]) == "zero3"
        ):  # shards all that there is: other splits are told where there are
            fields |= {name: fields[name] or "1" for name in ("tp", "pp")}
        missing = [name for name in _NEEDED if not fields[name]]
        if missing or _gpu_name(fields["gpu"]) is None:
            lacks = f"{', '.join(missing)} not published" if missing else f"{fields['gpu']} is not in the hardware file"
            passed.append(f"{fields['id']}: {lacks}")
            continue
        try:
            rows.append(_row(fields))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number} ({fields['id']}): can't be read: {error}") from None
    return rows, passed


def speed_errors(rows: Sequence[Row]) -> Errors:
    return Errors([row.predicted_speed() / row.tokens_per_s - 1 for row in rows if row.tokens_per_s])


def memory_errors(rows: Sequence[Row]) -> Errors:
    return Errors([row.predicted_memory() / row.memory_gb - 1 for row in rows if row.memory_gb])


def by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by the place that printed them."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(re.split(r" @| \(| s7|, stored", row.source)[0], []).append(row)
    return grouped


def _row(fields: dict[str, str]) -> Row:
    return Row(
        id=fields["id"],
        source=fields["source"],
        job=_job(fields),
        tokens_per_s=_number(fields.get("tokens_per_s_per_gpu")),
        memory_gb=_number(fields.get("memory_gb")),
        out_of_memory="OUT OF MEMORY" in fields["notes"],
    )


def _job(fields: dict[str, str]) -> Job:
    """What a row leaves out: tables of Transformer Engine (so named, or 8-bit products and nothing said) are of a stack
    that overlaps all communication, has fused kernels and sequence parallelism; attention is flash attention unless it
    is said to be unfused, or the attention core alone is recomputed, which only pays for unfused; such programs of 2021
    and 2022 do not overlap gradients. No sharding named is ZeRO-1. No global batch named is many micro batches."""
    precision, attention, recompute = fields["precision"], fields["attention"], fields["recompute"]
    te = attention == "te" or (attention in ("unknown", "") and _product_format(precision) != "none")
    sharding = _SHARDING.get(fields["sharding"], "zero1")
    core_alone = recompute == "selective" and sharding in ("none", "zero1")  # FSDP's programs mean other operators
    unfused = attention == "unfused" or (attention == "unknown" and core_alone and not te)
    tp, pp, cp, vpp = (int(fields.get(name) or 1) for name in ("tp", "pp", "cp", "vp"))
    dp = int(fields.get("dp") or int(fields["nodes_or_gpus"]) // (tp * pp * cp))
    micro = int(fields.get("micro_batch") or 1)
    return Job(
        model=_model(fields),
        layout=Layout(tp, pp, cp, dp, vpp),
        cluster=_cluster(fields),
        micro_batch_size=micro,
        global_batch_size=int(fields.get("global_batch") or _MICRO_BATCHES * micro * dp),
        sequence_parallel=tp > 1 and (fields["sequence_parallel"] != "false" or te),
        sharding=sharding,
        recompute=_RECOMPUTE.get(recompute, "none"),
        dtype="fp16" if precision.startswith("fp16") else "bf16",
        product_format=_product_format(precision),
        attention="unfused" if unfused else "flash",
        backend="te" if te else "torch",
        overlap_grads=not unfused,
        overlap_params=te,
        overlap_tp=te and tp > 1,
        fused_rope=te,
        fused_gradient_sums=te,
    )


def _model(fields: dict[str, str]) -> ModelConfig:
    """The kind of feed-forward layer stands in the notes; a page without it is of a GPT (GELU). Of LLaMA's kind, an
    inner width is rounded up to a multiple of 256, as its own code does; heads are 128 wide where their number is not
    given."""
    hidden = int(fields["hidden"])
    swiglu = "mlp=swiglu" in fields["notes"]
    ffn = int(fields.get("ffn") or (8 * hidden // 3 if swiglu else 4 * hidden))
    heads = int(fields.get("heads") or max(1, hidden // 128))
    vocabulary = fields.get("vocab") or (250_880 if "vocab ~250k" in fields["notes"] else 51_200)
    return ModelConfig(
        vocab_size=int(vocabulary),
        hidden_size=hidden,
        ffn_hidden_size=-(-ffn // 256) * 256 if swiglu and ffn % 64 else ffn,
        num_layers=int(fields["num_layers"]),
        num_attention_heads=heads,
        num_query_groups=int(fields.get("kv_heads") or heads),
        kv_channels=hidden // heads,
        seq_length=int(fields["seq"]),
        activation="swiglu" if swiglu else "gelu",
        normalization="rmsnorm" if swiglu else "layernorm",
        position_embedding="rope" if swiglu else "learned_absolute",
        tie_embeddings=not swiglu,
    )


def _cluster(fields: dict[str, str]) -> Cluster:
    """The network is the GPU's reference system's, unless the notes name another."""
    name = _gpu_name(fields["gpu"])
    assert name is not None, "such rows are passed over"
    known = gpus()
    network = re.search(r"(\d+)x(\d+)Gb|(\d+) ?Gbps", fields["notes"])
    if network is None:
        return cluster_of(known[name])
    gigabits = int(network[1]) * int(network[2]) if network[1] else int(network[3])
    return cluster_of(known[name], node_gb_per_s=gigabits / 8)


def _gpu_name(text: str) -> str | None:
    """Its name in the hardware file: a table may add the form factor and the memory."""
    name = text.lower().replace("-sxm", "")
    with_size = re.sub(r"(gb).*", r"\1", name)
    return next((each for each in (name, with_size, re.sub(r"-\d+gb.*", "", name)) if each in gpus()), None)


def _product_format(precision: str) -> ProductFormat:
    return next((kind for kind in _FORMATS if kind in precision.replace("float8", "fp8")), "none")


def _number(text: str | None) -> float | None:
    return float(text) if text else None
