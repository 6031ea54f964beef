"""A run as one rank has joined it, and the parts of it that are made of several sections of the recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_sky.checkpoint.manager import CheckpointManager
from megatron_sky.checkpoint.saver import Saver
from megatron_sky.config import Config
from megatron_sky.data.loader import DocumentBounds, TrainingData
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.log import get_logger
from megatron_sky.trainer import run_folder
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.preflight import Preflight
from megatron_sky.trainer.resume import Start, load_everything
from megatron_sky.trainer.sessions import Sessions, kept_marks
from megatron_sky.trainer.signals import StopRequests
from megatron_sky.trainer.startup import check_disk
from megatron_sky.trainer.step import StepRunner
from megatron_sky.trainer.validation import Validator

log = get_logger(__name__)


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


def training_data(job: Job) -> TrainingData:
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


def make_room(job: Job) -> None:
    """Deletes what cut-off saves left, now that there is a checkpoint to go on from, or no need of one."""
    if job.lock is not None and job.lock.is_held:
        run_folder.sweep(job.run_dir, log.warning)
    if job.context.rank == 0:
        check_disk(job.config, job.run_dir, log.warning)


def build_validator(job: Job, runner: StepRunner) -> Validator:
    config = job.config
    return Validator(
        config.validation,
        job.seen.validation,
        runner=runner,
        context=job.context,
        model=config.model,
        micro_batch_size=config.train.micro_batch_size,
        bounds=DocumentBounds.of(config.data, pairs=config.learns_preference),
    )


def open_checkpoints(
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
        adapter=start.adapter,
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
