"""datatrove's executors as we run them: quiet, with the task that failed named."""

import os
from pathlib import Path

import multiprocess
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

from megatron_sky.corpus.passes import Pass
from megatron_sky.corpus.recipe import SlurmConfig
from megatron_sky.errors import RunError


class TaskFailed(RunError):
    """A task's failure, as it comes back from a worker process."""

    def __init__(self, message: str, rank: int):
        super().__init__(message, rank)
        self.rank = rank

    def __str__(self) -> str:
        return str(self.args[0])


class LocalExecutor(LocalPipelineExecutor):
    """Tasks write to their log files alone, and a failure says which task it is."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        try:
            return super()._run_for_rank(rank, local_rank=1, node_rank=node_rank)
        except Exception as error:
            raise TaskFailed(f"task {rank} failed ({type(error).__name__}: {error})", rank) from error
        finally:
            logger.remove()  # of the screen, to which datatrove goes back after each task


def run_local(one: Pass, logs: Path, workers: int) -> None:
    """Runs the tasks of a pass that are not done yet. Raises TaskFailed."""
    logger.remove()
    os.environ |= {"LOGURU_AUTOINIT": "False", "TQDM_DISABLE": "1"}  # of the processes that are started
    multiprocess.set_forkserver_preload(["megatron_sky.corpus.passes"])  # once for all passes' workers
    workers = min(workers, one.num_tasks)
    LocalExecutor(pipeline=one.steps, tasks=one.num_tasks, workers=workers, logging_dir=str(logs)).run()


def submit(passes: list[Pass], folder: Path, config: SlurmConfig) -> dict[str, str]:
    """Submits an array for each pass that is not done, each after the one before; the (last) job of each."""
    before: SlurmPipelineExecutor | None = None
    jobs = {}
    for one in passes:
        executor = SlurmPipelineExecutor(
            pipeline=one.steps,
            tasks=one.num_tasks,
            time=config.time,
            partition=config.partition,
            cpus_per_task=config.cpus_per_task,
            mem_per_cpu_gb=config.memory_gb,
            workers=config.tasks_at_once,
            job_name=f"corpus_{one.name}",
            qos=config.qos,
            max_array_size=config.max_array_size,
            tasks_per_job=config.tasks_per_job,
            logging_dir=str(folder / "logs" / one.name),
            depends=before,
        )
        executor.run()
        if executor.job_id != -1:
            jobs[one.name] = str(executor.job_id)
        before = executor
    return jobs
