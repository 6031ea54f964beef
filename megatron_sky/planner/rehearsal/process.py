"""Where a rehearsal runs: in a process of its own, which ends with this one. What it bends stays there."""

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context

from megatron_sky.config import Config
from megatron_sky.config.validate import backend_problems, check
from megatron_sky.distributed.helpers import end_with, how_it_ended
from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.errors import ConfigError, Problem, RunError
from megatron_sky.planner.rehearsal.result import Rehearsal
from megatron_sky.versions import installed

_HOPPER, _BLACKWELL = (9, 0), (10, 0)
_TE_PACKAGES = ("transformer-engine", "onnxscript")


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
    """The rehearsals of these ranks, of one job or of several, one after another; a process for each kind of GPU.

    Raises ConfigError where a recipe can't be trained so, or needs Transformer Engine and it is not here; RunError
    naming operator and line where the program fails in rehearsal.
    """
    by_kind: dict[tuple[int, int] | None, list[int]] = {}
    named: list[Request] = []
    for place, request in enumerate(requests):
        check(request.config, request.world_size)
        backend = choose_backend(request.config)
        model = request.config.model.model_copy(update={"backend": backend})
        named.append(replace(request, config=request.config.model_copy(update={"model": model})))
        by_kind.setdefault(_capability(request.config) if backend == "te" else None, []).append(place)
    results: dict[int, Rehearsal] = {}
    for capability, places in by_kind.items():
        results.update(zip(places, _rehearse_in_one([named[place] for place in places], capability), strict=True))
    return [results[place] for place in range(len(requests))]


def choose_backend(config: Config) -> str:
    """The backend on which a recipe is rehearsed: the one it names, else torch, else the only one that suits it.

    Raises ConfigError where there is none, and where Transformer Engine's Python half is needed and not installed.
    """
    backend = config.model.backend
    if backend == "auto":
        backend = "te" if backend_problems(config, "torch") and not backend_problems(config, "te") else "torch"
    problems = backend_problems(config, backend)
    if backend == "te":
        problems += _te_problems(config)
    if problems:
        raise ConfigError(problems)
    return backend


def _te_problems(config: Config) -> list[Problem]:
    problems = []
    missing = [name for name in _TE_PACKAGES if installed(name) is None]
    if missing:
        rule = f"needs {' and '.join(missing)} to be rehearsed, of which no GPU is asked, and which is not installed"
        fix = 'pip install "megatron-sky[te-rehearsal]", or model.backend=torch to rehearse the recipe there'
        problems.append(Problem("model.backend", rule, fix, "te"))
    if config.kernels.cuda_graphs:
        rule = "can't be rehearsed: what CUDA keeps for the graphs that it records is not known here"
        problems.append(Problem("kernels.cuda_graphs", rule, "set it to false for the rehearsal", True))
    return problems


def _capability(config: Config) -> tuple[int, int]:
    """The compute capability that is rehearsed: a Hopper GPU's, or a Blackwell's where the recipe needs one."""
    fp8 = config.precision.fp8
    return _BLACKWELL if fp8 is not None and fp8.recipe == "mxfp8" else _HOPPER


def _rehearse_in_one(requests: Sequence[Request], capability: tuple[int, int] | None) -> list[Rehearsal]:
    """In one process of its own; `capability`: where Transformer Engine is rehearsed."""
    spawn = get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_serve, args=(there, os.getpid(), list(requests), capability), daemon=True)
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


def _serve(answers, parent: int, requests: Sequence[Request], capability: tuple[int, int] | None = None) -> None:
    end_with(parent)
    sys.stdout = sys.stderr  # what libraries print is no part of a verb's own lines
    from megatron_sky.distributed import device
    from megatron_sky.planner.rehearsal.ledger import Ledger

    ledger = Ledger()
    device.rehearse(ledger, te_capability=capability)
    from megatron_sky.planner.rehearsal.run import rehearse_rank

    gc.freeze()  # what was imported stays: it is not looked through again and again for what could be freed
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
