"""Rates that `plan --calibrate` measured on a machine: seconds of the program's operators by size, read and looked up.

A table has, for each number of ranks that worked on the machine at once, rows of sizes and seconds for each kind of
operator. Between and beyond its rows an operator takes a sum of few physical terms (its arithmetic, each matrix that
it reads or writes, its start), whose weights are fitted to the rows, none below 0; near a measured size it is corrected
by how far the sum is off there.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from megatron_sky.errors import Problem

Terms = Callable[..., list[float]]
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Kind:
    """An operator: the names of its sizes, and the terms that its seconds are a sum of."""

    sizes: tuple[str, ...]
    terms: Terms


def _product(m: float, n: float, k: float) -> list[float]:
    return [m * n * k, m * k, k * n, m * n, 1.0]


def _attention(batch: float, queries: float, keys: float, heads: float, head_size: float) -> list[float]:
    scores = batch * heads * queries * keys
    return [scores * head_size, scores, batch * heads * (queries + keys) * head_size, 1.0]


def _layer(tokens: float, hidden: float, qkv: float, ffn: float) -> list[float]:
    return [tokens * hidden, tokens * qkv, tokens * ffn, 1.0]


def _bytes(_ranks: float, size: float) -> list[float]:
    return [size, 1.0]


KINDS: Mapping[str, Kind] = {
    "product_forward": Kind(("m", "n", "k"), _product),
    "product_input_gradient": Kind(("m", "n", "k"), _product),
    "product_weight_gradient": Kind(("m", "n", "k"), _product),
    "attention_forward": Kind(("batch", "queries", "keys", "heads", "head_size"), _attention),
    "attention_backward": Kind(("batch", "queries", "keys", "heads", "head_size"), _attention),
    "gated_layer_forward": Kind(("tokens", "hidden", "qkv", "ffn"), _layer),
    "gated_layer_backward": Kind(("tokens", "hidden", "qkv", "ffn"), _layer),
    "plain_layer_forward": Kind(("tokens", "hidden", "qkv", "ffn"), _layer),
    "plain_layer_backward": Kind(("tokens", "hidden", "qkv", "ffn"), _layer),
    "loss": Kind(("tokens", "vocabulary"), lambda tokens, vocabulary: [tokens * vocabulary, tokens, 1.0]),
    "embedding": Kind(
        ("tokens", "vocabulary", "hidden"),
        lambda tokens, vocabulary, hidden: [vocabulary * hidden, tokens * hidden, 1.0],
    ),
    "gradients": Kind(("parameters",), lambda parameters: [parameters, 1.0]),
    "update": Kind(("parameters",), lambda parameters: [parameters, 1.0]),
    "all_reduce": Kind(("ranks", "bytes"), _bytes),
    "reduce_scatter": Kind(("ranks", "bytes"), _bytes),
    "all_gather": Kind(("ranks", "bytes"), _bytes),
    "send": Kind(("ranks", "bytes"), _bytes),
    "wait": Kind(("ranks", "microseconds"), lambda _ranks, microseconds: [microseconds, 1.0]),
    "step": Kind(
        ("layers", "micro_batches"),
        lambda layers, micro_batches: [layers * micro_batches, micro_batches, layers, 1.0],
    ),
}
"""What is measured. A layer is measured without its products and attention: `gated` is RMSNorm, SwiGLU and rotary
positions, `plain` LayerNorm, GELU and biases. `gradients`: set to zero and scaled; `update`: norm, clipping and AdamW.
`wait`: for the slower ranks at a collective, after so long a piece of work of the rank's own.
`step`: of a model of TINY, for what starting operators and a step cost where there is nothing to compute."""

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "send")
BETWEEN_RANKS = (*COLLECTIVES, "wait")
"""Kinds that the table of one rank lacks; files of earlier versions have no `wait`."""
TINY = {"tokens": 64, "hidden": 64, "qkv": 192, "ffn": 192, "heads": 2, "head_size": 32, "vocabulary": 128}
Row = tuple[float, ...]
_NEAR = 0.2  # weight of "no correction" beside a measured size's 1


@dataclass
class Curve:
    """Seconds of one kind in one format, by size."""

    kind: Kind
    rows: Sequence[Row]
    _known: dict[tuple[float, ...], float] = field(default_factory=dict, repr=False)

    @cached_property
    def weights(self) -> list[float]:
        """Of the terms: least squares of the relative errors, none below 0."""
        return _fit([self.kind.terms(*row[:-1]) for row in self.rows], [row[-1] for row in self.rows])

    def _sum(self, sizes: Sequence[float]) -> float:
        return sum(weight * term for weight, term in zip(self.weights, self.kind.terms(*sizes), strict=True))

    @cached_property
    def _corrections(self) -> list[tuple[list[float], float]]:
        return [
            ([math.log2(size) for size in row[:-1]], math.log(row[-1] / max(self._sum(row[:-1]), 1e-12)))
            for row in self.rows
        ]

    def seconds(self, *sizes: float) -> float:
        """The fitted sum, corrected by the measured sizes within about an octave."""
        if sizes not in self._known:
            place = [math.log2(max(size, 1.0)) for size in sizes]
            weight, correction = _NEAR, 0.0
            for measured, error in self._corrections:
                near = math.exp(-0.5 * sum((a - b) ** 2 for a, b in zip(place, measured, strict=True)))
                weight, correction = weight + near, correction + near * error
            self._known[sizes] = self._sum(sizes) * math.exp(correction / weight)
        return self._known[sizes]


@dataclass(frozen=True)
class Rates:
    """What was measured with `ranks` at once on the machine, each with so many `threads` (a CPU's; 0 on GPUs)."""

    ranks: int
    threads: int
    reserve_gib: float
    """Of memory, that a rank has before it has a model."""
    curves: Mapping[tuple[str, str], Curve] = field(hash=False)

    def seconds(self, kind: str, dtype: str, *sizes: float) -> float:
        """Of one operator. A format that was not measured is taken as bf16, or as fp32."""
        return self._curve(kind, dtype).seconds(*sizes)

    def _curve(self, kind: str, dtype: str) -> Curve:
        return next(self.curves[kind, known] for known in (dtype, "bf16", "fp32") if (kind, known) in self.curves)

    def collective(self, kind: str, dtype: str, ranks: int, size_bytes: float) -> float:
        """Of a group of `ranks`; of the number measured next to it, where that is another, by what passes each rank."""
        curve = self._curve(kind, dtype)
        groups = sorted({int(row[0]) for row in curve.rows})
        near = min(groups, key=lambda group: abs(math.log2(group / ranks)))
        group = Curve(curve.kind, [row for row in curve.rows if row[0] == near]) if len(groups) > 1 else curve
        share = 1.0 if kind == "send" else (ranks - 1) / ranks / ((near - 1) / near)
        return group.seconds(near, size_bytes) * share

    def waiting(self, dtype: str, work: float) -> float:
        """Seconds that a rank waits for the slower ones at a collective that it comes to after `work` seconds."""
        if not any(kind == "wait" for kind, _ in self.curves):
            return 0.0
        return self.seconds("wait", dtype, self.ranks, 1e6 * work)

    def peak(self, dtype: str) -> float:
        """FLOP/s of the fastest measured product."""
        rows = self._curve("product_forward", dtype).rows
        return max(2 * m * n * k / seconds for m, n, k, seconds in rows)

    def overhead(self, dtype: str) -> tuple[float, float, float]:
        """(of a layer, of a micro batch, of a step): seconds beyond what a tiny model's operators take alone."""
        layer, micro_batch, _, step = self._curve("step", dtype).weights
        t = TINY
        tokens, hidden, qkv, ffn = t["tokens"], t["hidden"], t["qkv"], t["ffn"]
        known = self.seconds("gated_layer_forward", dtype, tokens, hidden, qkv, ffn)
        known += self.seconds("gated_layer_backward", dtype, tokens, hidden, qkv, ffn)
        for kind in ("attention_forward", "attention_backward"):
            known += self.seconds(kind, dtype, 1, tokens, tokens, t["heads"], t["head_size"])
        for n, k in ((qkv, hidden), (hidden, hidden), (2 * ffn, hidden), (hidden, ffn)):
            for kind in ("product_forward", "product_input_gradient", "product_weight_gradient"):
                known += self.seconds(kind, dtype, tokens, n, k)
        return max(0.0, layer - known), micro_batch, step


@dataclass(frozen=True)
class Measured:
    """The rates of a machine, by the number of ranks at work on it."""

    tables: tuple[Rates, ...]

    def at(self, ranks: int) -> Rates:
        """The table for so many ranks, or the next larger, or the largest."""
        larger = [table for table in self.tables if table.ranks >= ranks]
        return min(larger, key=lambda table: table.ranks) if larger else max(self.tables, key=lambda table: table.ranks)


def read_measured(raw: object, where: str) -> tuple[Measured | None, list[Problem]]:
    """The `measured` section of a hardware file; what is wrong with it, each place named."""
    again = "measure again: megatron-sky plan --calibrate --output FILE"
    if not isinstance(raw, list) or not raw:
        return None, [Problem(where, "must be a list of tables, one for each number of ranks", again)]
    problems: list[Problem] = []
    tables = []
    for number, entry in enumerate(raw):
        place = f"{where}[{number}]"
        if not isinstance(entry, dict) or set(entry) != {"ranks", "threads", "reserve_gib", "seconds"}:
            problems.append(Problem(place, "must have ranks, threads, reserve_gib and seconds, and no more", again))
            continue
        for name, least in (("ranks", 1), ("threads", 0), ("reserve_gib", 0)):
            if not _is_number(entry[name]) or entry[name] < least:
                problems.append(Problem(f"{place}.{name}", f"must be a number of at least {least}", again, entry[name]))
        curves, wrong = _read_curves(entry["seconds"], f"{place}.seconds", again)
        problems += wrong
        if not problems:
            tables.append(Rates(int(entry["ranks"]), int(entry["threads"]), float(entry["reserve_gib"]), curves))
    if len({table.ranks for table in tables}) < len(tables):
        problems.append(Problem(where, "has two tables for one number of ranks", again))
    return (None if problems else Measured(tuple(tables))), problems


def _read_curves(raw: object, where: str, again: str) -> tuple[dict[tuple[str, str], Curve], list[Problem]]:
    if not isinstance(raw, dict):
        return {}, [Problem(where, "must be rows by kind of operator and format", again)]
    problems = [
        Problem(f"{where}.{name}", "is no kind of operator", f"known: {', '.join(KINDS)}")
        for name in raw.keys() - KINDS
    ]
    needed = [name for name in KINDS if name not in BETWEEN_RANKS]
    problems += [Problem(f"{where}.{name}", "is missing", again) for name in needed if name not in raw]
    curves = {}
    for name, formats in raw.items():
        if name not in KINDS:
            continue
        if not isinstance(formats, dict) or not formats or not set(formats) <= set(DTYPES):
            problems.append(Problem(f"{where}.{name}", f"must be rows by format ({', '.join(DTYPES)})", again))
            continue
        if not set(formats) & {"fp32", "bf16"}:
            problems.append(Problem(f"{where}.{name}", "lacks fp32 and bf16", again))
        for dtype, rows in formats.items():
            place, wanted = f"{where}.{name}.{dtype}", (*KINDS[name].sizes, "seconds")
            if not isinstance(rows, list) or not rows or not all(_is_row(row, len(wanted)) for row in rows):
                rule = f"must be rows of numbers above 0: {', '.join(wanted)}"
                problems.append(Problem(place, rule, again))
            else:
                curves[name, dtype] = Curve(KINDS[name], [tuple(map(float, row)) for row in rows])
    return curves, problems


def _is_row(row: object, length: int) -> bool:
    return isinstance(row, list) and len(row) == length and all(_is_number(value) and value > 0 for value in row)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fit(terms: Iterable[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Weights of at least 0 whose sums are near the seconds: least squares of relative errors, one weight at a time."""
    rows = [[term / second for term in row] for row, second in zip(terms, seconds, strict=True)]
    scales = [max(row[column] for row in rows) or 1.0 for column in range(len(rows[0]))]
    rows = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    count = len(scales)
    squares = [[sum(row[i] * row[j] for row in rows) for j in range(count)] for i in range(count)]
    sums = [sum(row[i] for row in rows) for i in range(count)]
    weights = [0.0] * count
    for _ in range(2000):
        for i in range(count):
            rest = sums[i] - sum(squares[i][j] * weights[j] for j in range(count) if j != i)
            weights[i] = max(0.0, rest / squares[i][i]) if squares[i][i] else 0.0
    return [weight / scale for weight, scale in zip(weights, scales, strict=True)]
