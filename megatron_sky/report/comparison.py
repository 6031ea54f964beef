"""What a report says of several runs: the same pictures with the runs laid over each other, and their differences."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_sky.config.units import format_count
from megatron_sky.files import real_path
from megatron_sky.monitor.console import format_seconds
from megatron_sky.report.content import Block, Cell, Change, Document, Pictures, Section, table
from megatron_sky.report.evaluations import Evaluations, evaluation_sections
from megatron_sky.report.figures import draw_compared_sets, draw_comparison
from megatron_sky.report.one_run import loss, notes, training_time, validation_cost
from megatron_sky.report.recipes import recipe_differences
from megatron_sky.report.run import RunData, compared_loss


def named_apart(runs: Sequence[RunData], folders: Sequence[Path]) -> list[RunData]:
    """The runs under names that differ: as much of the end of each folder's path as that takes."""
    parts = [real_path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def describe_comparison(runs: Sequence[RunData], evaluations: Evaluations) -> Document:
    """The whole report of several runs; the first is the one that the others are measured against."""
    lines = [f"{run.name}: {note}" for run in runs for note in run.notes]
    differences = recipe_differences({run.name: run.config for run in runs}, lines)
    sets = draw_compared_sets(runs)
    return Document(
        title=" | ".join(run.name for run in runs),
        kind="comparison of runs",
        subtitle=f"Comparison of {len(runs)} runs, {training_time(runs)}",
        sections=[
            Section("", _runs(runs)),
            Section("", [Pictures(draw_comparison(runs), "pairs")]),
            Section("Validation loss by domain", [Pictures(sets, "pairs")] if sets else []),
            *_sets(runs),
            *evaluation_sections(evaluations),
            Section("Where the recipes differ", differences),
            Section("Notes", notes([*lines, *evaluations.notes])),
        ],
    )


def _runs(runs: Sequence[RunData]) -> list[Block]:
    headings = ["run", "tokens", "steps", "training loss", f"against {runs[0].name}", "time in steps"]
    rows = [_run_row(run, runs[0]) for run in runs]
    return table([*headings, "validation", "tokens/s", "MFU", "layout"], rows, "nrrrrrrrrn")


def _run_row(run: RunData, first: RunData) -> list[Cell]:
    last = run.metrics.train[-1] if run.metrics.train else None
    rate, mfu = run.median("tokens_per_second"), run.median("mfu")
    return [
        run.name,
        "-" if last is None else format_count(last.consumed_tokens),
        "-" if last is None else f"{last.step:,}",
        loss(run.final_loss),
        _against(run.final_loss, None if run is first else first.final_loss),
        format_seconds(run.step_seconds),
        validation_cost(run),
        "-" if rate is None else f"{rate:,.0f}",
        "-" if mfu is None else f"{mfu:.1%}",
        " \u2192 ".join(run.layouts) or "-",
    ]


def _sets(runs: Sequence[RunData]) -> list[Section]:
    """The sets compared by normalised loss and those that are not, each kind in a table of its own."""
    names = dict.fromkeys(domain.name for run in runs for domain in run.domains)
    fields = {name: compared_loss(runs, name) for name in names}
    units = {"normalised_loss": "normalised, nats per reference token", "lm_loss": "nats per token"}
    return [
        Section(
            f"First and last validation losses, {unit}",
            _set_table(runs, [name for name in names if fields[name] == field], field),
        )
        for field, unit in units.items()
    ]


def _set_table(runs: Sequence[RunData], names: Sequence[str], field: str) -> list[Block]:
    """A row for each set and run: what it came from, what it came to, and that against the first run's."""
    domains = [{domain.name: domain for domain in run.domains} for run in runs]
    rows: list[list[Cell]] = []
    for name in names:
        base = domains[0].get(name)
        for number, (run, own) in enumerate(zip(runs, domains, strict=True)):
            if name in own:
                first, last = getattr(own[name].first, field), getattr(own[name].last, field)
                other = getattr(base.last, field) if base is not None and number else None
                change = Change(last - first)
                rows.append([name, run.name, f"{first:.4f}", f"{last:.4f}", change, _against(last, other)])
    headings = ["domain", "run", "first loss", "last loss", "change", f"against {runs[0].name}"]
    return table(headings, rows, "nnrrrr")


def _against(value: float | None, other: float | None) -> Cell:
    return "-" if value is None or other is None else Change(value - other)
