"""A run from recipe to last checkpoint, as one rank sees it: look, join, find the start, build, fit."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_sky.checkpoint.manager import CheckpointManager
from megatron_sky.checkpoint.saver import Saver
from megatron_sky.config import Config
from megatron_sky.data.loader import DocumentBounds, TrainingData
from megatron_sky.data.tokens.sources import fingerprints
from megatron_sky.distributed import device
from megatron_sky.distributed.context import ParallelContext, open_context
from megatron_sky.distributed.launch import HANG_EXIT_CODE, RankInfo, leave_with, mark_startup_complete
from megatron_sky.distributed.requirements import warn_of_untested
from megatron_sky.log import get_logger, setup_logging
from megatron_sky.trainer import changed_keys, facts, out_of_memory, run_folder
from megatron_sky.trainer.bad_steps import BadSteps
from megatron_sky.trainer.build import build_runner
from megatron_sky.trainer.files import RunFiles
from megatron_sky.trainer.garbage import GarbageCollection
from megatron_sky.trainer.loop import Trainer
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.preflight import Preflight, preflight
from megatron_sky.trainer.profiler import Profiler
from megatron_sky.trainer.resume import Remaining, Start, find_start, load_everything, load_start, remaining_steps
from megatron_sky.trainer.sessions import Sessions, kept_marks
from megatron_sky.trainer.signals import StopRequests
from megatron_sky.trainer.startup import check_disk, find_machine_problems, rank_facts
from megatron_sky.trainer.step import StepRunner
from megatron_sky.trainer.stragglers import Stragglers
from megatron_sky.trainer.validation import Validator
from megatron_sky.trainer.watchdog import Watchdog

log = get_logger(__name__)


def train(config: Config, info: RankInfo) -> None:
    """Trains, as rank `info.rank`, until the recipe's budget is met; continues the run folder's run if it has one.

    Raises LeftEarly where the job was asked to stop: everything is saved then.
    """
    run_dir, resilience = Path(config.train.run_dir), config.resilience
    device.setup(
        info.local_rank, config.train.num_threads, info.local_world_size, deterministic=config.kernels.deterministic
    )
    seen = preflight(config, info.world_size, leads=info.rank == 0, machine_problems=find_machine_problems)
    seen.raise_errors()
    run_folder.prepare(run_dir)
    setup_logging(info.rank, info.world_size, run_dir)
    lock = run_folder.locked(run_dir, log.warning) if info.rank == 0 else contextlib.nullcontext()
    with (
        lock as held,
        StopRequests(resilience) as stop_requests,
        open_context(
            config.parallel,
            info,
            facts=rank_facts(config, seen.sources),
            startup_timeout_seconds=resilience.startup_timeout_seconds,
            timeout_seconds=resilience.step_timeout_seconds + 60,  # the watchdog's word comes first
            warn=log.warning,
        ) as context,
        Watchdog(
            rank=context.rank,
            world_size=context.world_size,
            store=context.store,
            timeout_seconds=resilience.step_timeout_seconds,
            stacks=run_dir / "logs" / f"stacks_{context.rank:05d}.txt",
            end=lambda message: leave_with(context.rank, message, HANG_EXIT_CODE),
        ) as watchdog,
        out_of_memory.explained(config, context.layout, rank=context.rank, run_dir=run_dir),
    ):
        mark_startup_complete()
        _train(Job(config, run_dir, seen, context, stop_requests, watchdog.beat, lock=held))


@dataclass(frozen=True)
class Job:
    """A run as this rank has joined it. `lock`: of the run folder, which rank 0 holds."""

    config: Config
    run_dir: Path
    seen: Preflight
    context: ParallelContext
    stop_requests: StopRequests
    beat: Callable[[str], None]
    lock: run_folder.Lock | None

    @property
    def sessions(self) -> Sessions:
        assert self.seen.sessions is not None, "preflight found no fault"
        return self.seen.sessions


def _train(job: Job) -> None:
    config, context = job.config, job.context
    data = _in_recipe_order(job)
    sources = context.from_first_rank(lambda: fingerprints({source.name: source.path for source in config.data.train}))
    start = _find_start(job, data, sources)
    _make_room(job)
    runner = build_runner(config, context=context, beat=job.beat, draws_weights=start.is_empty)
    load_start(start, runner, context)
    validator = _build_validator(job, runner)
    remaining = remaining_steps(
        config.train, seq_length=config.model.seq_length, sessions=job.sessions, state=start.state
    )
    _tell_of_start(job, start, runner, remaining)
    with (
        Observer(
            config,
            context=context,
            state=start.state,
            remaining=remaining,
            run_dir=job.run_dir,
            token_ratios=facts.token_ratios(config.tokenizer, validator, context),
        ) as observer,
        RunFiles(data, settings=config.data, train=config.train, context=context, run_dir=job.run_dir) as files,
        Profiler(config.profile, rank=context.rank, run_dir=job.run_dir, tell=log.info) as profiler,
        GarbageCollection(config.train.gc_interval) as garbage,
    ):
        observer.run_started(start.state.step, is_resumed=start.own is not None)
        observer.event("data", **facts.data_facts(config.data.train, data, job.seen))
        resilience, name_samples = config.resilience, files.name_samples
        Trainer(
            train=config.train,
            sessions=job.sessions,
            context=context,
            state=start.state,
            files=files,
            runner=runner,
            validator=validator,
            checkpoints=_open_checkpoints(job, start, data, runner, observer, sources),
            bad_steps=BadSteps(resilience, context=context, name_samples=name_samples, report=observer.bad_step),
            observer=observer,
            stop_requests=job.stop_requests,
            check_folder=job.lock.check if job.lock is not None else lambda: None,
            stragglers=Stragglers(resilience, context, observer.slow_ranks),
            profiler=profiler,
            garbage=garbage,
            beat=job.beat,
        ).fit()
    runner.model.release()


def _in_recipe_order(job: Job) -> TrainingData:
    """The data in the order that the recipe asks for; megatron-core's is built once, by the job's first rank."""
    config, seen = job.config, job.seen
    if config.data.sampling == "plan":
        assert seen.data is not None, "preflight found no fault"
        return seen.data
    from megatron_sky.data.sampling.megatron_order import MegatronTrainData

    return MegatronTrainData(
        config.data,
        seen.sources,
        seq_length=config.model.seq_length,
        vocab_size=config.model.vocab_size,
        total_samples=job.sessions.last.end_sample,
        cache=job.run_dir / "index_cache",
    )


def _find_start(job: Job, data: TrainingData, sources: Mapping[str, str]) -> Start:
    config = job.config
    return find_start(
        config.checkpoint,
        model=config.model,
        parallel=config.parallel,
        precision=config.precision,
        sessions=job.sessions,
        data=data,
        run_dir=job.run_dir,
        context=job.context,
        sources=sources,
        allow_changed_files=config.data.allow_changed_files,
    )


def _tell_of_start(job: Job, start: Start, runner: StepRunner, remaining: Remaining) -> None:
    if job.context.rank == 0:
        warn_of_untested(log.warning)
        if start.own is not None:
            samples = start.state.consumed_samples
            changed_keys.tell(start.own.config, job.config, checkpoint=start.own.folder.name, consumed_samples=samples)
            changed_keys.tell_of_tokenizer(start.own.folder, job.seen.tokenizer)
    facts.log_run_start(
        job.config,
        context=job.context,
        model=runner.model,
        state=start.state,
        sessions=job.sessions,
        remaining=remaining,
        notes=job.seen.notes,
        run_dir=job.run_dir,
    )


def _make_room(job: Job) -> None:
    """Deletes what cut-off saves left, now that there is a checkpoint to go on from, or no need of one."""
    if job.lock is not None and job.lock.is_held:
        run_folder.sweep(job.run_dir, log.warning)
    if job.context.rank == 0:
        check_disk(job.config, job.run_dir, log.warning)


def _build_validator(job: Job, runner: StepRunner) -> Validator:
    config = job.config
    return Validator(
        config.validation,
        job.seen.validation,
        runner=runner,
        context=job.context,
        model=config.model,
        micro_batch_size=config.train.micro_batch_size,
        bounds=DocumentBounds.of(config.data),
    )


def _open_checkpoints(
    job: Job, start: Start, data: TrainingData, runner: StepRunner, observer: Observer, sources: Mapping[str, str]
) -> CheckpointManager:
    saver = Saver(
        job.run_dir,
        config=job.config,
        context=job.context,
        chunks=runner.model.chunks,
        optimizer=runner.optimizer,
        fingerprint=data.plan.fingerprint,
        sources=sources,
        tokenizer=job.seen.tokenizer,
        fp8=runner.model.fp8,
    )
    return CheckpointManager(
        job.config.checkpoint,
        run_dir=job.run_dir,
        context=job.context,
        saver=saver,
        load=partial(load_everything, runner=runner, context=job.context),
        marks=kept_marks(job.config),
        progress=start.state,
        last_good_step=start.state.step if start.own is not None else None,
        report=observer.save_ended,
        beat=job.beat,
    )
