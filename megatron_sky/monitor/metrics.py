"""The record of a run: one JSON object a line in `<run_dir>/metrics.jsonl`, mirrored to TensorBoard and W&B.

Rank 0 hands in a `TrainRecord` per step, a `ValidationRecord` per set and evaluation, and named events (start, resume,
checkpoint, ...). `read_metrics` gives the run back as one history: what a resume made void, and lines torn by a kill,
are left out there, so the file itself is only ever appended to and nothing has to be rewritten after a crash. Every
line is one write to the file: no buffer of ours can lose steps. The price, measured on one CPU core, is about 0.1 ms
a step, 0.4 ms with TensorBoard.

None of this ends a run once it has begun: what can't be written is told once, waits in memory, and is written when that
is possible again (`appender`).

Numbers that JSON lacks are the strings "nan", "inf" and "-inf". docs/monitoring.md lists the fields.
"""

import contextlib
import importlib.util
import io
import itertools
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_sky.appender import Appender
from megatron_sky.config.schema import WandbConfig
from megatron_sky.errors import MissingDependency, RunError
from megatron_sky.files import json_text, parse_json, read_numbers, read_text, real_path, write_text
from megatron_sky.log import get_logger
from megatron_sky.records import read_record

log = get_logger(__name__)

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_run_id"


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Of pairs of answers: beta times what a log-probability has gained over the base's, as means over pairs."""

    reward_chosen: float
    reward_rejected: float
    margin: float
    """reward_chosen - reward_rejected."""
    accuracy: float
    """Share of pairs whose chosen answer has the higher reward."""


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """One optimizer update. `consumed_*` count from the run's start, this step included."""

    step: int
    consumed_samples: int
    consumed_tokens: int
    lm_loss: float
    """Mean cross-entropy of this step's tokens, in nats."""
    lr: float
    grad_norm: float
    """Global L2 norm before clipping."""
    global_batch_size: int
    """Sequences."""
    step_seconds: float
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    tflops_per_gpu: float
    mfu: float | None = None
    """Fraction of the device's peak, None where the peak isn't known."""
    preference: Preference | None = None
    """Of preference training, whose loss `lm_loss` is then, in nats per pair; not written where it is None."""
    time: float = field(default_factory=time.time)
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """One validation set's loss after `step` updates (0: before the first)."""

    step: int
    consumed_tokens: int
    set: str
    lm_loss: float
    """Mean cross-entropy of the set's tokens, in nats."""
    tokens: int
    """Tokens the loss was taken over."""
    seconds: float
    normalised_loss: float | None = None
    """The same sum of losses per token of the reference tokenizer, where the recipe names one."""
    preference: Preference | None = None
    """As a TrainRecord's; `tokens` is then the number of pairs."""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class EventRecord:
    """Something that happened: `event` is its name, `fields` what it carries (often `step`)."""

    event: str
    time: float
    fields: dict[str, Any]


@dataclass(frozen=True)
class Metrics:
    """A run's history, in order of steps; events as they happened. `notes` tells what was skipped."""

    train: list[TrainRecord]
    validation: list[ValidationRecord]
    events: list[EventRecord]
    notes: list[str]


def check_wandb(wandb: WandbConfig | None) -> None:
    """Raises MissingDependency where W&B is asked for and not installed."""
    if wandb is not None and importlib.util.find_spec("wandb") is None:
        raise MissingDependency("wandb", "monitor.wandb", 'pip install "megatron-sky[wandb]"')


class MetricsWriter:
    """Appends records to `metrics.jsonl` and hands their numbers to TensorBoard and W&B. For rank 0 only.

    A "resume" event (with `step`) or "start" event voids the later steps written before it: `read_metrics` leaves them
    out and TensorBoard is told to purge them. Raises RunError when the run folder can't be written,
    MissingDependency when W&B is asked for and not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool,
        wandb: WandbConfig | None,
        config: dict,
        warn: Callable[[str], None] = log.warning,
    ):
        """`config`: the resolved recipe as plain values, shown by W&B. `warn` is told what fails later, once."""
        run_dir = Path(run_dir)
        check_wandb(wandb)
        self._file = Appender(run_dir / METRICS_FILE, warn, tail=b"\n")
        try:
            self._file.open()
        except OSError as error:
            raise _write_error(self._file.path, error) from error
        self._wandb = None if wandb is None else _WandbSink(run_dir, wandb, config, warn)
        self._tensorboard = _TensorBoardSink(run_dir / "tensorboard", warn) if tensorboard else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, record: TrainRecord) -> None:
        """Write one step."""
        values = _values(record)
        self._append({"kind": "train"} | values)
        scalars = {f"train/{name}": values[name] for name in _TRAIN_SCALARS if values[name] is not None}
        scalars |= {f"train/{name}": value for name, value in values.get("preference", {}).items()}
        self._send(record.step, record.consumed_tokens, record.time, scalars)

    def validation(self, record: ValidationRecord) -> None:
        """Write one set's loss."""
        values = _values(record)
        self._append({"kind": "validation"} | values)
        scalars = {f"validation/{record.set}/lm_loss": record.lm_loss}
        if record.normalised_loss is not None:
            scalars[f"validation/{record.set}/normalised_loss"] = record.normalised_loss
        scalars |= {f"validation/{record.set}/{name}": value for name, value in values.get("preference", {}).items()}
        self._send(record.step, record.consumed_tokens, record.time, scalars)

    def event(self, event: str, **values: Any) -> None:
        """Write an event with free fields (plain JSON values); "resume" needs `step`, the last step it keeps."""
        assert event != "resume" or "step" in values, "a resume event needs its step"
        assert not {"kind", "event", "time"} & values.keys(), "kind, event and time are the writer's own fields"
        self._append({"kind": "event", "event": event, "time": time.time()} | values)
        if self._tensorboard and event in ("start", "resume"):
            self._tensorboard.purge_after(values.get("step", 0))

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.close()

    def _append(self, values: dict) -> None:
        self._file.append(json_text(values).encode("utf-8", "replace") + b"\n")

    def _send(self, step: int, consumed_tokens: int, wall_time: float, scalars: dict[str, float]) -> None:
        if self._tensorboard:
            self._tensorboard.write(step, wall_time, scalars)
        if self._wandb:
            self._wandb.write({"step": step, "consumed_tokens": consumed_tokens} | scalars)


def _values(record: TrainRecord | ValidationRecord) -> dict[str, Any]:
    values = asdict(record)
    if record.preference is None:
        del values["preference"]
    return values


_TRAIN_SCALARS = tuple(item.name for item in fields(TrainRecord) if item.name not in ("step", "time", "preference"))


class _TensorBoardSink:
    """TensorBoard event files, each record made by tensorboard's own writer (no torch, no tensorflow).

    Its EventFileWriter is not used: a disk that is full once ends its thread, and every later call with it.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]):
        from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        number = next(n for n in itertools.count() if not os.path.lexists(folder / f"{name}.{n}"))
        source = SourceMetadata(writer="tensorboard.summary.writer.event_file_writer")
        head = Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source)
        self._file = Appender(folder / f"{name}.{number}", warn, head=_tensorboard_record(head))

    def write(self, step: int, wall_time: float, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        event = Event(wall_time=wall_time, step=step, summary=Summary(value=values))
        self._file.append(_tensorboard_record(event))

    def purge_after(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self._file.append(_tensorboard_record(Event(wall_time=time.time(), step=step + 1, session_log=start)))

    def close(self) -> None:
        self._file.close()


def _tensorboard_record(event) -> bytes:
    """An Event as its file holds it: with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


class _WandbSink:
    """One W&B run per run folder: its id is kept there, so that a resumed run goes on in the same picture.

    What fails in W&B is told once, and the next step is handed to it all the same; where it can't begin (a network, an
    account) it is left out until the next start, since asking again would hold up every step.
    """

    def __init__(self, run_dir: Path, wandb: WandbConfig, config: dict, warn: Callable[[str], None]):
        import wandb as library

        self._warn, self._failed, self._run = warn, False, None
        with self._told("is left out of this job"):
            run = library.init(
                project=wandb.project,
                name=wandb.name or real_path(run_dir).name,
                id=_wandb_id(run_dir),
                resume="allow",
                mode=wandb.mode,
                dir=str(run_dir),
                config=config,
            )
            # W&B refuses to go back in its own step counter, as a resume does; ours is an ordinary field instead.
            run.define_metric("*", step_metric="step")
            self._run = run

    def write(self, values: dict[str, float]) -> None:
        if self._run is not None:
            with self._told("misses a step"):
                self._run.log(values)

    def close(self) -> None:
        if self._run is not None:
            with self._told("may lack its end"):
                self._run.finish()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: the library's own, the network's, the disk's
            if not self._failed:
                self._warn(f"Weights & Biases {what}, the run goes on without: {type(error).__name__}: {error}")
            self._failed = True
        else:
            self._failed = False


def _wandb_id(run_dir: Path) -> str:
    path = run_dir / WANDB_ID_FILE
    if path.is_symlink() or not path.exists():
        write_text(path, secrets.token_hex(4) + "\n")
    return read_text(path).strip()


def _write_error(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: can't be written ({error.strerror}).\n  fix: free space, or choose a writable run_dir")


def read_metrics(run_dir: Path) -> Metrics:
    """Read a run's history from `<run_dir>/metrics.jsonl`.

    Train and validation records of steps beyond a later "resume" event's `step` (or a later "start") are left out; of
    two records of one step (and set) the later one counts. Events are all kept: they tell what happened. A line that
    isn't whole is skipped and told in `notes`. Raises RunError when the file is missing.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise RunError(f"{path}: no such file.\n  fix: give the folder of a run that has trained at least one step")
    history = _History()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                history.take(number, line)
    return history.metrics()


class _History:
    """Collects the lines of a metrics file into records, dropping what later lines replace."""

    def __init__(self):
        self._train: dict[int, TrainRecord] = {}
        self._validation: dict[tuple[int, str], ValidationRecord] = {}
        self._events: list[EventRecord] = []
        self._notes: list[str] = []

    def take(self, number: int, line: bytes) -> None:
        try:
            values = parse_json(line)
            self._add(values.pop("kind"), values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # what a line of another shape can cause
            why = f"{type(error).__name__}: {error}"
            self._notes.append(f"line {number} skipped: not a whole record ({len(line)} bytes; {why})")

    def _add(self, kind: str, values: dict) -> None:
        if kind == "train":
            step = read_record(TrainRecord, values)
            self._train[step.step] = step
        elif kind == "validation":
            record = read_record(ValidationRecord, values)
            self._validation[record.step, record.set] = record
        elif kind == "event":
            event, when = values.pop("event"), values.pop("time")
            self._events.append(EventRecord(event, when, {name: read_numbers(value) for name, value in values.items()}))
            if event in ("start", "resume"):
                self._forget_after(int(values.get("step", 0)))
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _forget_after(self, step: int) -> None:
        self._train = {key: record for key, record in self._train.items() if record.step <= step}
        self._validation = {key: record for key, record in self._validation.items() if record.step <= step}

    def metrics(self) -> Metrics:
        return Metrics(
            train=sorted(self._train.values(), key=lambda record: record.step),
            validation=sorted(self._validation.values(), key=lambda record: record.step),
            events=self._events,
            notes=self._notes,
        )
