"""datatrove's executors as we run them: quiet, failed tasks tried again and noted, the others of their pass done.

A process that is killed, as when memory runs out, fails its task alone; datatrove's pool would wait for it without end.
"""

import contextlib
import multiprocessing
import os
import shlex
import sys
from collections import Counter, deque
from copy import deepcopy
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

import dill
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

from megatron_sky.corpus.passes import Pass
from megatron_sky.corpus.recipe import ExecutionConfig
from megatron_sky.corpus.skips import clear_failure, write_failure
from megatron_sky.corpus.stage import NotReady
from megatron_sky.distributed.helpers import end_with, how_it_ended
from megatron_sky.errors import RunError


class TaskFailed(RunError):
    """A task that has failed as often as it may; why is noted (`skips.read_failures`)."""


class _Tasks(PipelineExecutor):
    """Tasks write to their log files alone, are tried again when they fail, and their failure is noted."""

    pipeline: list
    notes: tuple[Path, str]  # the corpus's folder, the pass
    retries: int

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        pipeline = self.pipeline
        for attempt in range(1, self.retries + 2):
            self.pipeline = deepcopy(pipeline)
            try:
                stats = super()._run_for_rank(rank, local_rank=1, node_rank=node_rank)
                clear_failure(*self.notes, rank)
                return stats
            except NotReady:
                raise
            except Exception as error:
                told = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
                write_failure(*self.notes, rank, told, attempt)
                if attempt > self.retries:
                    raise TaskFailed(f"task {rank} failed ({told})") from error
            finally:
                self.pipeline = pipeline
                logger.remove()  # of the screen, to which datatrove goes back after each task
        raise AssertionError


class LocalExecutor(_Tasks, LocalPipelineExecutor):
    pass


class SlurmExecutor(_Tasks, SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Nothing: nobody reads them, and the job waits for ever when a task fails."""


def run_local(one: Pass, folder: Path, config: ExecutionConfig) -> None:
    """Runs the tasks of a pass that are not done yet, all of them whatever fails. Raises NotReady."""
    logger.remove()
    os.environ |= {"LOGURU_AUTOINIT": "False", "TQDM_DISABLE": "1"}  # of the processes that are started
    executor = LocalExecutor(one.steps, tasks=one.num_tasks, logging_dir=str(folder / "logs" / one.name))
    executor.notes, executor.retries = (folder, one.name), config.retries
    ranks = executor.get_incomplete_ranks()
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(ranks))
    if workers > 1:
        _run_processes(executor, ranks, workers)
        return
    for rank in ranks:
        _run(executor, rank)


def _run(executor: LocalExecutor, rank: int) -> bool:
    """Whether the task is done."""
    try:
        executor._run_for_rank(rank)
        return True
    except TaskFailed:  # noted
        return False


class _Worker:
    """A process that does tasks one after the other; `task`: the one that it does now."""

    def __init__(self, pickled: bytes):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["megatron_sky.corpus.passes"])  # once for all processes
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(pickled, theirs))
        self.process.start()
        theirs.close()
        self.task = -1

    def begin(self, task: int) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # `ended` tells
            self.connection.send(task)

    def ended(self) -> bool:
        """Whether the process has ended, when there is news of it; else its task has."""
        try:
            self.connection.recv()
            return False
        except (EOFError, ConnectionResetError):
            self.process.join()
            return True


def _run_processes(executor: LocalExecutor, ranks: list[int], num_workers: int) -> None:
    pickled = dill.dumps(executor)
    waiting, ends = deque(ranks), Counter[int]()
    workers = [_Worker(pickled) for _ in range(num_workers)]
    try:
        for worker in workers:
            worker.begin(waiting.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.task >= 0}:
            for connection in wait(list(busy)):
                worker = busy[cast(Connection, connection)]
                task, worker.task = worker.task, -1
                if worker.ended():
                    ends[task] += 1
                    end = f"its process {how_it_ended(worker.process.exitcode or 0)}"
                    write_failure(*executor.notes, task, end, ends[task])
                    waiting.extend([task] if ends[task] <= executor.retries else [])
                    workers.remove(worker)
                    worker = _Worker(pickled)
                    workers.append(worker)
                if waiting:
                    worker.begin(waiting.popleft())
    except BaseException:  # an interruption among them: what they do is not waited for
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.connection.close()  # by which it ends
            worker.process.join()


def _work(pickled: bytes, connection: Connection) -> None:
    end_with(os.getppid(), heeds_sigterm=True)
    executor = dill.loads(pickled)
    while True:
        try:
            task = connection.recv()
        except EOFError:  # there is no more to do
            return
        _run(executor, task)
        connection.send(task)


def submit(passes: list[Pass], folder: Path, config: ExecutionConfig) -> dict[str, str]:
    """Submits an array for each pass that is not done, each after the one before; the (last) job of each."""
    before: SlurmExecutor | None = None
    jobs = {}
    for one in passes:
        executor = SlurmExecutor(
            pipeline=one.steps,
            tasks=one.num_tasks,
            time=config.slurm.time,
            partition=config.slurm.partition,
            cpus_per_task=config.slurm.cpus_per_task,
            mem_per_cpu_gb=config.slurm.memory_gb,
            workers=config.slurm.tasks_at_once,
            job_name=f"corpus_{one.name}",
            qos=config.slurm.qos,
            max_array_size=config.slurm.max_array_size,
            tasks_per_job=config.slurm.tasks_per_job,
            logging_dir=str(folder / "logs" / one.name),
            depends=before,
            sbatch_args={"kill-on-invalid-dep": "yes"},  # what waits for a task that failed leaves the queue
            env_command=f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH",
        )
        executor.notes, executor.retries = (folder, one.name), config.retries
        executor.run()
        if executor.job_id != -1:
            jobs[one.name] = str(executor.job_id)
        before = executor
    return jobs
