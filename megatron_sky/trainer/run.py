"""A run from recipe to last checkpoint, as one rank sees it: look, join, find the start, build, fit."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from megatron_sky.checkpoint.description import CheckpointDescription
from megatron_sky.config import Config
from megatron_sky.data.loader import TrainingData
from megatron_sky.data.tokens.sources import fingerprints
from megatron_sky.distributed import device
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import HANG_EXIT_CODE, RankInfo, leave_with, mark_startup_complete
from megatron_sky.distributed.requirements import warn_of_untested
from megatron_sky.log import get_logger, setup_logging
from megatron_sky.trainer import changed_keys, facts, out_of_memory, run_folder
from megatron_sky.trainer.bad_steps import BadSteps
from megatron_sky.trainer.best import Best
from megatron_sky.trainer.build import build_runner
from megatron_sky.trainer.files import RunFiles
from megatron_sky.trainer.garbage import GarbageCollection
from megatron_sky.trainer.job import Job, build_validator, make_room, open_checkpoints, training_data
from megatron_sky.trainer.loop import Trainer
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.preflight import preflight
from megatron_sky.trainer.profiler import Profiler
from megatron_sky.trainer.reference import Reference, use_reference
from megatron_sky.trainer.resume import Remaining, Start, find_start, load_start, remaining_steps
from megatron_sky.trainer.signals import StopRequests
from megatron_sky.trainer.startup import find_machine_problems, rank_facts
from megatron_sky.trainer.step import StepRunner
from megatron_sky.trainer.stragglers import Stragglers
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


def _train(job: Job) -> None:
    config, context = job.config, job.context
    data = training_data(job)
    sources = context.from_first_rank(lambda: fingerprints({source.name: source.path for source in config.data.train}))
    start = _find_start(job, data, sources)
    make_room(job)
    runner = build_runner(config, context=context, beat=job.beat, draws_weights=start.is_empty)
    validator = build_validator(job, runner)
    if config.learns_preference and start.base is not None:
        use_reference(Reference(config, start.base, runner, context), data, validator)
    load_start(start, runner, context, vocab_size=config.model.vocab_size)
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
            checkpoints=open_checkpoints(job, start, data, runner, observer, sources),
            bad_steps=BadSteps(resilience, context=context, name_samples=name_samples, report=observer.bad_step),
            observer=observer,
            stop_requests=job.stop_requests,
            check_folder=job.lock.check if job.lock is not None else lambda: None,
            stragglers=Stragglers(resilience, context, observer.slow_ranks),
            profiler=profiler,
            garbage=garbage,
            best=Best(job.run_dir, context) if config.finetune and config.finetune.keep_best else None,
            beat=job.beat,
        ).fit()
    runner.model.release()


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
        finetune=config.finetune,
    )


def _tell_of_changes(job: Job, own: CheckpointDescription, samples: int) -> None:
    if own.is_converted:
        log.info("%s: %s; the recipe in hand counts from here on", own.folder.name, own.layout)
    else:
        changed_keys.tell(own.config, job.config, checkpoint=own.folder.name, consumed_samples=samples)


def _tell_of_start(job: Job, start: Start, runner: StepRunner, remaining: Remaining) -> None:
    if job.context.rank == 0:
        warn_of_untested(log.warning)
        if start.own is not None:
            _tell_of_changes(job, start.own, start.state.consumed_samples)
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
