"""Rehearsals as text: one column for each rank, or as JSON."""

import json
from collections.abc import Iterable, Sequence

from megatron_sky.planner.rehearsal.result import PARTS, Rehearsal

_COLUMNS, _ROWS = 8, 8  # at most, in one table
_GIB, _TERA = 1 << 30, 1e12


def as_json(results: Sequence[Rehearsal]) -> str:
    return json.dumps({"backend": results[0].backend, "ranks": [result.as_dict() for result in results]}, indent=2)


def as_text(results: Sequence[Rehearsal]) -> str:
    """Tables of up to eight ranks: the peak and its parts, what made them, operations, traffic."""
    first = results[0]
    seconds = sum(result.seconds for result in results)
    lines = [
        f"rehearsed   {first.layout} on {first.world_size:,} rank(s) with the {first.backend} backend, "
        f"{first.rehearsed_microbatches} of a step's {first.num_microbatches} micro batches, in {seconds:.1f} s"
    ]
    for start in range(0, len(results), _COLUMNS):
        lines += ["", *_table(results[start : start + _COLUMNS])]
    return "\n".join(lines)


def _table(results: Sequence[Rehearsal]) -> list[str]:
    def row(name: str, values: Iterable[str]) -> str:
        return f"{name[:36]:<37}" + "".join(f"{value:>11}" for value in values)

    def gib(name: str, values: Iterable[int]) -> str:
        return row(name, [f"{value / _GIB:,.2f}" for value in values])

    lines = [
        row("", [f"stage {result.stage}" for result in results]),
        row("", [f"rank {result.rank}" for result in results]),
        row("parameters, millions", [f"{result.parameters / 1e6:,.1f}" for result in results]),
        gib("memory at the peak, GiB", [result.peak_bytes for result in results]),
    ]
    lines += [gib(f"  {part}", [result.peak_by_part.get(part, 0) for result in results]) for part in PARTS]
    lines += ["peak of each phase, GiB"]
    for phase in dict.fromkeys(phase for result in results for phase in result.peaks):
        lines.append(gib(f"  {phase}", [result.peaks.get(phase, 0) for result in results]))
    lines += ["what made the last five parts, GiB"]
    for operator in _largest([result.peak_by_operator for result in results]):
        lines.append(gib(f"  {operator}", [result.peak_by_operator.get(operator, 0) for result in results]))
    lines += ["operations of a step, TFLOP"]
    for operator in _largest([result.flops for result in results]):
        lines.append(row(f"  {operator}", [f"{result.flops.get(operator, 0) / _TERA:,.2f}" for result in results]))
    lines += ["traffic of a step, GiB"]
    moved = [{(t.collective, t.group, t.group_size): t.bytes for t in result.traffic} for result in results]
    for key in _largest(moved):
        lines.append(gib("  {} {} ({:,})".format(*key), [table.get(key, 0) for table in moved]))
    lines += ["waits for the GPU in a step"]
    waits = [{wait.line: wait.calls for wait in result.waits} for result in results]
    for line in dict.fromkeys(line for table in waits for line in table):
        lines.append(row(f"  {line}", [f"{table.get(line, 0)}" for table in waits]))
    return lines


def _largest(counts: Sequence[dict]) -> list:
    """The keys with the largest sums, down to a thousandth of the first's."""
    total: dict = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    first = max(total.values(), default=0)
    return sorted((key for key in total if total[key] * 1000 >= first), key=lambda key: -total[key])[:_ROWS]
