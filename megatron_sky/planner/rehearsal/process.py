"""Where a rehearsal runs: in a process of its own, which ends with this one. What it bends stays there."""

import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context

from megatron_sky.config import Config
from megatron_sky.config.validate import backend_problems, check
from megatron_sky.distributed.helpers import end_with, how_it_ended
from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.errors import ConfigError, Problem, RunError
from megatron_sky.planner.rehearsal.result import Rehearsal


@dataclass(frozen=True)
class Request:
    """Rank `rank` of the recipe's job on `world_size` ranks."""

    config: Config
    world_size: int
    rank: int


def rehearse(config: Config, world_size: int, rank: int) -> Rehearsal:
    """A training step and a validation of one rank of a job of `world_size`. Raises as `rehearse_all`."""
    return rehearse_all([Request(config, world_size, rank)])[0]


def rehearse_stages(config: Config, world_size: int) -> list[Rehearsal]:
    """The rehearsals of every kind of rank, by pipeline stage."""
    return rehearse_all([Request(config, world_size, rank) for rank in stage_ranks(config, world_size)])


def stage_ranks(config: Config, world_size: int) -> list[int]:
    """A rank of each kind: the first of every pipeline stage. The other ranks of a stage hold and do the same."""
    layout = Layout.of(config.parallel, world_size)
    return [layout.rank(Coordinates(tp_rank=0, cp_rank=0, dp_rank=0, pp_rank=stage)) for stage in range(layout.pp_size)]


def rehearse_all(requests: Sequence[Request]) -> list[Rehearsal]:
    """The rehearsals of these ranks, of one job or of several, one after another in one process.

    Raises ConfigError where a recipe can't be trained so on the torch backend, and RunError naming operator and line
    where the program fails in rehearsal.
    """
    for request in requests:
        check(request.config, request.world_size)
        check_backend(request.config)
    spawn = get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_serve, args=(there, os.getpid(), list(requests)), daemon=True)
    process.start()
    there.close()
    results: list[Rehearsal] = []
    try:
        while len(results) < len(requests):
            answer = here.recv()
            if isinstance(answer, str):
                raise RunError(answer)
            results.append(answer)
    except EOFError:
        process.join()
        assert process.exitcode is not None, "it was waited for"
        rank = requests[len(results)].rank
        raise RunError(f"rank {rank}: the process that rehearsed it {how_it_ended(process.exitcode)}") from None
    finally:
        process.kill()
        process.join()
        here.close()
    return results


def check_backend(config: Config) -> None:
    """Raises ConfigError where only Transformer Engine can do what the recipe asks for."""
    fix = "set model.backend=torch to rehearse the recipe there"
    if config.model.backend == "te":
        rule = "the te backend is not rehearsed: what Transformer Engine's kernels keep in memory is not known here"
        raise ConfigError(Problem("model.backend", rule, fix, "te"))
    problems = backend_problems(config, "torch")
    if problems:
        raise ConfigError(problems)


def _serve(answers, parent: int, requests: Sequence[Request]) -> None:
    end_with(parent)
    from megatron_sky.distributed import device
    from megatron_sky.planner.rehearsal.ledger import Ledger

    ledger = Ledger()
    device.rehearse(ledger)
    from megatron_sky.planner.rehearsal.run import rehearse_rank

    for request in requests:
        try:
            answers.send(rehearse_rank(request.config, request.world_size, request.rank, ledger))
        except Exception as error:  # whatever the program fails with is the rehearsal's result
            answers.send(_failure(error, request.rank, ledger))
            return


def _failure(error: Exception, rank: int, ledger) -> str:
    from megatron_sky.planner.rehearsal.ledger import own_line

    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"rank {rank}: the rehearsal fails at {own_line(reversed(frames))}, operator {ledger.operator}: {reason}\n"
        "  fix: that line, or the recipe's sizes if the reason names one: on a GPU the run would fail or stall there"
    )
