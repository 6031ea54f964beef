"""What a report says of one run."""

import shlex
import time
from collections.abc import Sequence

from megatron_sky.config.units import format_count
from megatron_sky.monitor.console import format_seconds
from megatron_sky.monitor.metrics import TrainRecord
from megatron_sky.report.content import (
    Block,
    Cell,
    Change,
    Code,
    Document,
    Folded,
    KeyFigure,
    KeyFigures,
    Notes,
    Pictures,
    Samples,
    Section,
    Table,
    table,
)
from megatron_sky.report.evaluations import Evaluations, evaluation_sections
from megatron_sky.report.figures import draw_references, draw_run
from megatron_sky.report.finetuned import tuning_figures
from megatron_sky.report.history import Session
from megatron_sky.report.run import LAST_STEPS, DomainLoss, RunData, as_text, mean_loss

_MOST_EVENTS = 20


def describe_run(run: RunData, evaluations: Evaluations) -> Document:
    """The whole report of a run. Draws the pictures, which needs matplotlib."""
    return Document(
        title=run.name,
        kind="training report",
        subtitle=f"Training report, {training_time([run])}",
        sections=[
            Section("", [KeyFigures(_key_figures(run))]),
            Section("", _pictures(run)),
            Section("Sessions", _sessions(run)),
            Section(f"Validation loss by domain, nats per {run.loss_unit}", _domains(run)),
            Section("Validation loss beside other models", _references(run)),
            *evaluation_sections(evaluations),
            Section("Generated text", [Samples(run.samples)] if run.samples else []),
            Section("Training data", _sources(run)),
            Section("What happened", _events(run)),
            Section("The run", _facts(run) + _config(run)),
            Section("Notes", notes([*run.notes, *evaluations.notes])),
        ],
    )


def training_time(runs: Sequence[RunData]) -> str:
    """When the runs trained, from the first record to the last."""
    times = [record.time for run in runs for record in run.metrics.train]
    times += [record.time for run in runs for record in run.metrics.validation]
    first, last = (when(moment, "%Y-%m-%d %H:%M") for moment in (min(times), max(times)))
    return f"{first} to {last} UTC"


def when(seconds: object, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Unix seconds as a date; whatever else a damaged record holds, as it is."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 2**33:
        return as_text(seconds)
    return time.strftime(form, time.gmtime(seconds))


def notes(lines: Sequence[str]) -> list[Block]:
    return [Notes(lines)] if lines else []


def validation_cost(run: RunData) -> str:
    """`1.3%` of the time in steps and validation, or `-`."""
    known = run.validation_share
    return "-" if known is None else f"{known[1]:.2%}" if known[1] < 0.01 else f"{known[1]:.1%}"


def _pictures(run: RunData) -> list[Block]:
    pictures = draw_run(run)
    return [Pictures(pictures, "pairs" if run.mixture else "lead")]


def _key_figures(run: RunData) -> list[KeyFigure]:
    figures = [
        *_loss_figures(run),
        *tuning_figures(run.finetuned, run.metrics.validation),
        *_size_figures(run),
        *_speed_figures(run),
    ]
    if run.validation_share is not None:
        note = f"{format_seconds(run.validation_share[0])} of the time in steps and validation"
        figures.append(KeyFigure("Validation", validation_cost(run), note))
    if run.layouts:
        figures.append(KeyFigure("Layout" if len(run.layouts) == 1 else "Layouts", " \u2192 ".join(run.layouts)))
    return figures


def _loss_figures(run: RunData) -> list[KeyFigure]:
    train, entropy, final = run.metrics.train, run.unigram_entropy, run.final_loss
    figures = []
    if train:
        number = min(LAST_STEPS, len(train))
        note = "last step" if number == 1 else f"mean of the last {number} steps"
        value = "not finite" if final is None else f"{final:.4f}"
        figures.append(KeyFigure("Training loss", value, f"nats per {run.loss_unit}, {note}"))
    if entropy is not None:
        note = "nats per token"
        if final is not None:
            note += f"; the loss is {abs(entropy - final):.2f} {'under' if final < entropy else 'over'} it"
        figures.append(KeyFigure("Unigram entropy", f"{entropy:.4f}", note))
    return figures


def _size_figures(run: RunData) -> list[KeyFigure]:
    if not run.metrics.train:
        return []
    last = run.metrics.train[-1]
    return [
        KeyFigure("Tokens", format_count(last.consumed_tokens), "consumed"),
        KeyFigure("Steps", f"{last.step:,}", f"{last.global_batch_size:,} sequences each at the end"),
        KeyFigure("Time in steps", format_seconds(run.step_seconds)),
    ]


def _speed_figures(run: RunData) -> list[KeyFigure]:
    rate, each_gpu = run.median("tokens_per_second"), run.median("tokens_per_second_per_gpu")
    tflops, mfu = run.median("tflops_per_gpu"), run.median("mfu")
    figures = []
    if rate is not None and each_gpu is not None:
        figures.append(KeyFigure("Tokens/s", f"{rate:,.0f}", f"median; {each_gpu:,.0f} per GPU or process"))
    if tflops is not None:
        figures.append(KeyFigure("TFLOP/s per GPU", f"{tflops:.4g}", "median, model FLOPs"))
    if mfu is not None:
        figures.append(KeyFigure("MFU", f"{mfu:.1%}", "median"))
    return figures


def _sessions(run: RunData) -> list[Block]:
    if not run.sessions:
        return []
    rows = [_session_row(*entry) for entry in run.train_by_session]
    headings = ["session", "from", "to", "trained", "steps", "learning rate", "loss at its end"]
    return table(headings, rows, "nrrrrrr")


def _session_row(session: Session, train: Sequence[TrainRecord]) -> list[str]:
    """`train`: the session's steps so far."""
    last = train[-1]
    return [
        session.name,
        format_count(session.first_token),
        format_count(session.end_token),
        format_count(last.consumed_tokens - session.first_token),
        f"{train[0].step:,} to {last.step:,}",
        f"{train[0].lr:.3g} \u2192 {last.lr:.3g}",
        loss(mean_loss(train[-LAST_STEPS:])),
    ]


def _domains(run: RunData) -> list[Block]:
    normalised = any(domain.last.normalised_loss is not None for domain in run.domains)
    extra = ["normalised loss"] if normalised else []
    headings = ["domain", "first loss", "last loss", "change", *extra, "unigram entropy", "tokens"]
    rows = [_domain_row(domain, normalised) for domain in run.domains]
    return table(headings, rows, "n" + "r" * (len(headings) - 1))


def _domain_row(domain: DomainLoss, normalised: bool) -> list[Cell]:
    return [
        domain.name,
        f"{domain.first.lm_loss:.4f}",
        f"{domain.last.lm_loss:.4f}",
        Change(domain.last.lm_loss - domain.first.lm_loss),
        *([loss(domain.last.normalised_loss)] if normalised else []),
        loss(domain.unigram_entropy),
        f"{domain.last.tokens:,}",
    ]


def _references(run: RunData) -> list[Block]:
    pictures = draw_references(run)
    return [Pictures(pictures, "pairs")] if pictures else []


def _sources(run: RunData) -> list[Block]:
    usage = run.usage
    rows = []
    for source in run.sources:
        used, epochs = usage.get(source.name, (None, None))
        tokens = ["-" if count is None else f"{count:,}" for count in (source.tokens, used)]
        turns = "-" if epochs is None else f"{epochs:.2f}"
        rows.append([source.name, source.weight, *tokens, turns, loss(source.unigram_entropy)])
    return table(["source", "weight", "tokens", "used", "epochs", "unigram entropy, nats"], rows, "nrrrrr")


def _events(run: RunData) -> list[Block]:
    rows = []
    for event in run.metrics.events:
        if event.event in ("data", "sources"):
            continue  # have tables and pictures of their own
        rest = {name: value for name, value in event.fields.items() if name != "step"}
        rows.append([when(event.time), str(event.event), as_text(event.fields.get("step")), as_text(rest)])
    events = Table(["time (UTC)", "event", "step", "details"], rows, "nnrt")
    if len(rows) > _MOST_EVENTS:
        return [Folded(f"{len(rows)} events", events)]
    return [events] if rows else []


def _facts(run: RunData) -> list[Block]:
    rows = [[name, as_text(value)] for name, value in _flat_facts(run.facts)]
    return table(["fact", "value"], rows, "nt")


def _flat_facts(facts: dict[str, object]) -> list[tuple[str, object]]:
    """run.json as rows: each attempt by its number and start, a row for each thing it says."""
    rows: list[tuple[str, object]] = []
    for name, value in facts.items():
        if name != "attempts" or not isinstance(value, list):
            rows.append((str(name), value))
            continue
        for number, attempt in enumerate(value, 1):
            said = attempt if isinstance(attempt, dict) else {"": attempt}
            rows += [
                (f"attempt {number}: {str(key).replace('_', ' ')}", _said(key, value)) for key, value in said.items()
            ]
    return rows


def _said(key: object, value: object) -> object:
    """A command as one types it."""
    if key == "command" and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return shlex.join(value)
    return value


def _config(run: RunData) -> list[Block]:
    return [] if run.config is None else [Code("The resolved recipe (config.yaml)", run.config)]


def loss(value: float | None) -> str:
    """Nats with four digits, or `-`."""
    return "-" if value is None else f"{value:.4f}"
