"""A run folder as the report needs it: its history, its side files, and the figures worked out from them.

Only metrics.jsonl must be there. Every other file is optional; one that is there and can't be read is told in `notes`,
which the page shows, so that a damaged side file never hides the rest of a run.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_sky.errors import RunError
from megatron_sky.files import check_inside, parse_json, read_text, real_path
from megatron_sky.monitor.metrics import (
    METRICS_FILE,
    Metrics,
    TrainRecord,
    ValidationRecord,
    read_metrics,
)
from megatron_sky.records import BadRecord, read_record
from megatron_sky.report.content import Sample
from megatron_sky.report.finetuned import Finetuned, read_finetuned
from megatron_sky.report.history import (
    ReferenceLoss,
    Session,
    Stretch,
    as_number,
    read_mixture,
    read_references,
    read_sessions,
)

LAST_STEPS = 10  # the loss of one step is noisy; the headline is the mean over this many


@dataclass(frozen=True)
class DataSource:
    """One training source or validation set, from the "data" event. Entropy in nats per token."""

    name: str
    tokens: int | None
    weight: str
    unigram_entropy: float | None


@dataclass(frozen=True)
class DomainLoss:
    """A validation set's first and last evaluation, losses in nats per token."""

    name: str
    first: ValidationRecord
    last: ValidationRecord
    unigram_entropy: float | None


@dataclass(frozen=True)
class RunData:
    """Everything the page shows. `data` is what the last "data" event told, in its own shape."""

    name: str
    metrics: Metrics
    samples: list[Sample]
    config: str | None
    facts: dict[str, object]
    data: dict[str, object]
    sessions: list[Session]
    references: list[ReferenceLoss]
    mixture: list[Stretch]
    finetuned: Finetuned | None
    notes: list[str]

    @property
    def final_loss(self) -> float | None:
        """Mean training loss of the last steps, those without a finite loss left out."""
        return mean_loss(self.metrics.train[-LAST_STEPS:])

    @property
    def train_by_session(self) -> list[tuple[Session, list[TrainRecord]]]:
        """The training records cut at the bounds of sessions; one nameless part where the run has no sessions."""
        sessions = self.sessions
        before = Session(f"before {sessions[0].name}", 0, sessions[0].first_token) if sessions else Session("", 0, 0)
        firsts = [session.first_token for session in sessions]
        parts: list[list[TrainRecord]] = [[] for _ in (before, *sessions)]
        for record in self.metrics.train:
            parts[bisect_left(firsts, record.consumed_tokens)].append(record)
        return [(session, part) for session, part in zip((before, *sessions), parts, strict=True) if part]

    @property
    def session_bounds(self) -> list[int]:
        """Consumed tokens at which one session took over from another."""
        return [session.first_token for session, _ in self.train_by_session[1:]]

    @property
    def step_seconds(self) -> float:
        """Seconds spent in steps."""
        return sum(record.step_seconds for record in self.metrics.train)

    @property
    def validation_share(self) -> tuple[float, float] | None:
        """Seconds spent on validation, and their share of those in steps and validation; None before either."""
        seconds = sum(record.seconds for record in self.metrics.validation)
        total = seconds + self.step_seconds
        known = self.metrics.train and self.metrics.validation and math.isfinite(total) and total > 0
        return (seconds, seconds / total) if known else None

    def median(self, field: str) -> float | None:
        """Median over the training steps of a field, the unknown and not finite left out."""
        values = [getattr(record, field) for record in self.metrics.train]
        known = [value for value in values if value is not None and math.isfinite(value)]
        return statistics.median(known) if known else None

    @property
    def layouts(self) -> list[str]:
        """The parallel layouts the run had, in order, each told once in a row."""
        layouts: list[str] = []
        for event in self.metrics.events:
            layout = event.fields.get("layout")
            if layout is not None and (not layouts or layouts[-1] != as_text(layout)):
                layouts.append(as_text(layout))
        return layouts

    @property
    def resume_tokens(self) -> list[int]:
        """Consumed tokens at which the run was resumed."""
        tokens: dict[float, int] = {record.step: record.consumed_tokens for record in self.metrics.train}
        steps = {as_number(event.fields.get("step")) for event in self.metrics.events if event.event == "resume"}
        return sorted(tokens[step] for step in steps if step in tokens)

    @property
    def unigram_entropy(self) -> float | None:
        """Of the training mixture, in nats per token: what a model that knows only token frequencies reaches.

        None of fine-tuning, whose loss is not over all tokens.
        """
        return as_number(self.data.get("unigram_entropy")) if self.finetuned is None else None

    @property
    def loss_unit(self) -> str:
        """What its losses are taken over."""
        return "token" if self.finetuned is None else self.finetuned.unit

    @property
    def sources(self) -> list[DataSource]:
        return _sources(self.data.get("sources"))

    @property
    def usage(self) -> dict[str, tuple[int | None, float | None]]:
        """Tokens and epochs that each source has given, from the last "sources" event."""
        events = [event for event in self.metrics.events if event.event == "sources"]
        listed = events[-1].fields.get("sources") if events else None
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return {
            as_text(entry.get("name")): (
                entry["tokens"] if isinstance(entry.get("tokens"), int) else None,
                as_number(entry.get("epochs")),
            )
            for entry in entries
        }

    @property
    def domains(self) -> list[DomainLoss]:
        """Each validation set's first and last loss, in the order in which they were first evaluated."""
        records: dict[str, list[ValidationRecord]] = {}
        for record in self.metrics.validation:
            records.setdefault(record.set, []).append(record)
        listed = _sources(self.data.get("validation")) if self.finetuned is None else []
        entropy = {source.name: source.unigram_entropy for source in listed}
        return [DomainLoss(name, losses[0], losses[-1], entropy.get(name)) for name, losses in records.items()]


def load_run(run_dir: Path) -> RunData:
    """Read a run folder. Raises RunError when it holds no training or validation record."""
    try:
        check_inside(run_dir / METRICS_FILE, run_dir)
    except OSError as error:
        raise RunError(f"{error.filename}: {error.strerror}\n  fix: put the file itself there") from None
    metrics = read_metrics(run_dir)
    if not metrics.train and not metrics.validation:
        raise RunError(
            f"{run_dir / METRICS_FILE}: holds no training or validation record.\n"
            "  fix: give the folder of a run that has trained at least one step"
        )
    data = next((event.fields for event in reversed(metrics.events) if event.event == "data"), {})
    lines = list(metrics.notes)
    sessions = read_sessions(metrics.events, lines)
    references, mixture = read_references(data, lines), read_mixture(data, lines)
    notes = [f"{METRICS_FILE}: {note}" for note in lines]
    samples = _read_samples(run_dir / "samples.json", notes)
    config = _read_text(run_dir / "config.yaml", notes)
    return RunData(
        name=real_path(run_dir).name,
        metrics=metrics,
        samples=samples,
        config=config,
        facts=_read_facts(run_dir / "run.json", notes),
        data=data,
        sessions=sessions,
        references=references,
        mixture=mixture,
        finetuned=read_finetuned(run_dir / "config.yaml", config, notes),
        notes=notes,
    )


def mean_loss(records: Sequence[TrainRecord]) -> float | None:
    """Mean training loss of the records whose loss is finite."""
    losses = [record.lm_loss for record in records if math.isfinite(record.lm_loss)]
    return statistics.fmean(losses) if losses else None


def compared_loss(runs: Sequence[RunData], set_name: str) -> Literal["lm_loss", "normalised_loss"]:
    """The field to compare the runs' losses on a validation set by: the normalised loss where every evaluation of every
    run that has the set gave it, since the runs' tokenizers may differ then."""
    records = [record for run in runs for record in run.metrics.validation if record.set == set_name]
    return "normalised_loss" if all(record.normalised_loss is not None for record in records) else "lm_loss"


def as_text(value: object) -> str:
    """A JSON value for people: a string as it is, `a: 1, b: 2` for an object, `a, b` for a list."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {as_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(as_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)


def _read_text(path: Path, notes: list[str]) -> str | None:
    if not path.exists():
        return None
    try:
        check_inside(path, path.parent)
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{path.name}: can't be read ({error})")
        return None


def _read_json(path: Path, notes: list[str]) -> object:
    text = _read_text(path, notes)
    if text is None:
        return None
    try:
        return parse_json(text)
    except ValueError as error:
        notes.append(f"{path.name}: is not JSON ({error})")
        return None


def _read_samples(path: Path, notes: list[str]) -> list[Sample]:
    content = _read_json(path, notes)
    try:
        return [] if content is None else read_record(list[Sample], content)
    except BadRecord as error:
        notes.append(f"{path.name}: {error}")
        return []


def _read_facts(path: Path, notes: list[str]) -> dict[str, object]:
    facts = _read_json(path, notes)
    if facts is not None and not isinstance(facts, dict):
        notes.append(f"{path.name}: must be an object")
    return facts if isinstance(facts, dict) else {}


def _sources(listed: object) -> list[DataSource]:
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return [
        DataSource(
            name=as_text(entry.get("name")),
            tokens=entry["tokens"] if isinstance(entry.get("tokens"), int) else None,
            weight=as_text(entry.get("weight")),
            unigram_entropy=as_number(entry.get("unigram_entropy")),
        )
        for entry in entries
    ]
