"""Where a job begins: at the run's own last checkpoint, from another run's weights, or at the first token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint import shared_check, store
from megatron_sky.checkpoint import state as checkpoint_state
from megatron_sky.checkpoint.description import (
    AdapterBase,
    CheckpointDescription,
    check_same_model,
    read_description,
)
from megatron_sky.config.schema import (
    CheckpointConfig,
    FinetuneConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainConfig,
)
from megatron_sky.data.loader import TrainingData
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError, ConfigError, DataError, Problem
from megatron_sky.log import get_logger
from megatron_sky.model.lora import adapters_of
from megatron_sky.monitor.metrics import METRICS_FILE, read_metrics
from megatron_sky.optim.schedule import run_length
from megatron_sky.trainer import run_record
from megatron_sky.trainer.finetune import Base, check_adapters, check_base, prepare_base
from megatron_sky.trainer.sessions import Sessions, sessions_of
from megatron_sky.trainer.state import TrainState, plan_number
from megatron_sky.trainer.step import StepRunner

log = get_logger(__name__)


@dataclass(frozen=True)
class Start:
    """Where the job begins. `own`: the run's checkpoint that it continues; `weights`: another one's weights alone.

    `base`: the model that a fine-tuning run teaches further; beneath adapters its weights are read in any case.
    """

    state: TrainState
    own: CheckpointDescription | None = None
    weights: CheckpointDescription | None = None
    base: Base | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the weights are drawn anew."""
        return self.own is None and self.weights is None and self.base is None

    @property
    def adapter(self) -> AdapterBase | None:
        """What checkpoints of adapters are to say of the model beneath; None where all weights are trained."""
        return self.base.named if self.base is not None and self.base.is_beneath else None


@dataclass(frozen=True)
class TakenUp:
    """A run's progress at a checkpoint; `change`: what the mixture or its length is now, empty if it is the same."""

    state: TrainState
    change: str


@dataclass(frozen=True)
class Remaining:
    """What this job has before it: steps, and the tokens that will have been consumed at its end."""

    steps: int
    end_token: int


def find_start(
    checkpoint: CheckpointConfig,
    *,
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    sessions: Sessions,
    data: TrainingData,
    run_dir: Path,
    context: ParallelContext,
    sources: Mapping[str, str],
    allow_changed_files: bool,
    finetune: FinetuneConfig | None = None,
) -> Start:
    """Where the job begins, by checkpoints that are verified by all ranks together. Collective.

    `sources`: the fingerprints of the training sources' files, by name. Raises CheckpointError where none is whole, one
    holds another model or those that were are gone, DataError where files hold other tokens than they did, ConfigError
    where the data, the optimizer or the session can't go on from there.
    """
    folder = shared_check.find_latest(run_dir, context, log.warning)
    base = None
    if finetune is not None:
        base = prepare_base(finetune, model, run_dir, is_begun=folder is not None, context=context)
    if folder is None:
        context.from_first_rank(lambda: _check_not_lost(checkpoint, run_dir))
    if folder is not None:
        own = read_description(folder)
        check_same_model(own.config.model, model, folder)
        check_adapters(own, base, finetune.lora if finetune else None)
        _check_same_optimizer(own, parallel, precision)
        _check_same_files(own, sources, log.warning if allow_changed_files else None)
        taken = take_up(own, data)
        if context.rank == 0 and taken.change:
            log.warning("the mixture or its length has changed since %s: %s", folder.name, taken.change)
        if context.rank == 0 and checkpoint.init_from:
            log.info("checkpoint.init_from is not used: the run continues from its own %s", folder.name)
        _rename_session(taken.state, sessions_of(own.config), sessions)
        start = Start(taken.state, own=own, base=base)
    elif checkpoint.init_from is not None:
        source = shared_check.resolve(Path(checkpoint.init_from), context, log.warning)
        weights = read_description(source)
        check_same_model(weights.config.model, model, source)
        first = sessions.first
        start = Start(TrainState(first.first_step, first.first_sample, first.first_token), weights=weights)
    else:
        start = Start(TrainState(), base=base)
    sessions.check_begin(start.state.consumed_samples)
    return start


def _check_same_optimizer(own: CheckpointDescription, parallel: ParallelConfig, precision: PrecisionConfig) -> None:
    """Raises ConfigError where the optimizer's state was saved in another form than the recipe's optimizer reads."""
    saved = own.config
    fix = "restore it, or start a new run from the weights with checkpoint.init_from"
    was, is_sharded = saved.parallel.distributed_optimizer, parallel.distributed_optimizer
    if was != is_sharded:
        rule = f"was {str(was).lower()} when {own.folder.name} was saved, in whose form the optimizer's state is"
        raise ConfigError(Problem("parallel.distributed_optimizer", rule, fix, is_sharded))
    if not is_sharded and saved.precision.dtype != precision.dtype:
        rule = f"was {saved.precision.dtype} when {own.folder.name} was saved; without parallel.distributed_optimizer "
        rule += "the optimizer's state is in the form of that type"
        raise ConfigError(Problem("precision.dtype", rule, fix, precision.dtype))


def _rename_session(state: TrainState, before: Sessions, now: Sessions) -> None:
    """Has a session that began under another name go on, where it would be entered anew and could lose its moments."""
    last = max(state.consumed_samples - 1, 0)
    if state.session == before.at(last).name and before.at(last).first_sample == now.at(last).first_sample:
        state.session = now.at(last).name


def _check_same_files(own: CheckpointDescription, sources: Mapping[str, str], warn: Callable | None) -> None:
    """Raises DataError, or tells `warn` where there is one, if a source's files hold other tokens than they did."""
    changed = [name for name, mark in sources.items() if own.sources.get(name, mark) != mark]
    if not changed:
        return
    text = f"{', '.join(changed)}: data.train: the files hold other tokens than when {own.folder.name} was saved"
    if warn is None:
        fix = "restore the files; or give the new ones another name as a source; or set data.allow_changed_files=true"
        raise DataError(f"{text}\n  fix: {fix}")
    warn(text)


def _check_not_lost(checkpoint: CheckpointConfig, run_dir: Path) -> None:
    """Raises CheckpointError where a run that has no checkpoint had some, unless the recipe lets it start over."""
    if not checkpoint.start_over and (was := _lost_step(run_dir)) is not None:
        raise CheckpointError(
            f"{run_dir / 'checkpoints'}: holds no checkpoint, but this run had one of step {was:,}\n"
            "  fix: bring the folder back; or give checkpoint.start_over=true, and the run begins at its first step"
        )


def _lost_step(run_dir: Path) -> int | None:
    """The step of the newest checkpoint that the run's records tell of since it last began; None where of none."""
    events = read_metrics(run_dir).events if (run_dir / METRICS_FILE).is_file() else []
    step = None
    for event in events:
        step = None if event.event == "start" else step
        if event.event == "checkpoint" or (event.event == "resume" and event.fields["step"]):
            step = event.fields["step"]
    if step is not None or any(event.event == "start" for event in events):
        return step
    attempts = [attempt for attempt in run_record.read_attempts(run_dir, log.warning) if "layout" in attempt]
    return attempts[-1].get("resumed_from_step") if attempts else None


def load_start(start: Start, runner: StepRunner, context: ParallelContext, *, vocab_size: int) -> None:
    """Weights and optimizer from the run's own checkpoint, or weights alone from another's. Collective."""
    if start.base is not None and (start.own is None or start.base.is_beneath):
        start.base.load(runner.model.chunks, num_tokens=vocab_size, context=context)
        runner.optimizer.reload_model_params()
    if start.own is not None:
        load_everything(start.own.folder, runner, context)
    elif start.weights is not None:
        checkpoint_state.load(start.weights.folder, context=context, chunks=runner.model.chunks)
        runner.optimizer.reload_model_params()
        log.info("weights from %s", start.weights.folder)


def load_everything(folder: Path, runner: StepRunner, context: ParallelContext) -> None:
    """Weights, optimizer and 8-bit scales from the checkpoint in `folder`; with adapters, these alone. Collective."""
    model = runner.model
    checkpoint_state.load(
        folder,
        context=context,
        chunks=model.chunks,
        optimizer=runner.optimizer,
        fp8=model.fp8,
        only_adapters=any(True for chunk in model.chunks for _ in adapters_of(chunk)),
    )


def take_up(checkpoint: CheckpointDescription, data: TrainingData) -> TakenUp:
    """Has `data` go on where the checkpoint stands. Raises ConfigError where that would repeat or skip samples."""
    state = TrainState.from_dict(checkpoint.progress)
    return TakenUp(state, data.continue_from(checkpoint.data, plan_number(state.consumed_samples, state.skipped)))


def check_start(
    checkpoint: CheckpointConfig,
    *,
    model: ModelConfig,
    run_dir: Path,
    warn: Callable[[str], None],
    finetune: FinetuneConfig | None = None,
) -> None:
    """Raises CheckpointError where the checkpoint to start from is not whole (by its sizes), is gone, or holds another
    model.

    Quick, for one process before others are started: the run's own newest checkpoint, else `checkpoint.init_from`.
    """
    source = store.find_latest(run_dir, warn, check=store.check_sizes)
    if source is None:
        _check_not_lost(checkpoint, run_dir)
    if source is None and checkpoint.init_from is not None:
        source = store.resolve(Path(checkpoint.init_from), warn, check=store.check_sizes)
    if source is not None:
        check_same_model(read_description(source).config.model, model, source)
    if finetune is not None:
        check_base(finetune, model)


def remaining_steps(train: TrainConfig, *, seq_length: int, sessions: Sessions, state: TrainState) -> Remaining:
    """What is left from `state` to the end of what this job trains."""
    limit = train.max_steps
    steps, samples = run_length(
        sessions.last.end_token,
        seq_length=seq_length,
        full_size=train.global_batch_size,
        rampup=train.batch_rampup,
        consumed_samples=state.consumed_samples,
        max_steps=None if limit is None else max(0, limit - state.step),
    )
    return Remaining(steps, samples * seq_length)
