"""`megatron-sky plan`: memory, speed and layout of a job, before a GPU is asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_sky.cli._common import with_options

if TYPE_CHECKING:
    from megatron_sky.planner.run import Failures

_ASKS = {
    "--rows": ("--check",),
    "--explain": ("--explain", "--goodput"),
    "--top": ("the search",),
    "--out": ("the search", "--explain", "--calibrate"),
    "--picture": ("the search", "--explain"),
    "--gpus": ("the search", "--explain", "--goodput"),
    "--gpu": ("the search", "--explain", "--scale", "--goodput"),
    "--gpus-per-node": ("the search", "--explain", "--scale", "--goodput"),
    "--network": ("the search", "--explain", "--scale", "--goodput"),
    "RECIPE": ("the search", "--explain", "--scale", "--goodput"),
    "--node-mtbf-hours": ("--goodput",),
    "--restart-minutes": ("--goodput",),
    "--repair-hours": ("--goodput",),
    "--checkpoint-stall": ("--goodput",),
}
"""What an option has an effect with, where that is not everything."""


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


@dataclass(frozen=True)
class _Others:
    """Options beside those of a layout."""

    gpus_per_node: int | None
    network: float | None
    top: int | None
    check: bool
    rows: Path | None
    calibrate: bool
    failures: "Failures"


def _others(
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Default: as the GPU is usually built in.")] = None,
    network: Annotated[
        float | None, typer.Option(min=0.1, callback=_finite, help="Gbit/s of a node; default: as usually built.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show this many layouts; default: 10.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Predict published measurements and show the errors.")] = False,
    rows: Annotated[
        Path | None, typer.Option(help="--check: a CSV file of measurements in place of the project's own.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure this machine, in two minutes, and write a file that --gpu takes."),
    ] = False,
    node_mtbf_hours: Annotated[
        float | None,
        typer.Option(min=1, callback=_finite, help="--goodput: hours between failures of one node; default: 6335."),
    ] = None,
    restart_minutes: Annotated[
        float | None,
        typer.Option(min=0, callback=_finite, help="--goodput: from a failure to training again; default: 10."),
    ] = None,
    repair_hours: Annotated[
        float | None, typer.Option(min=0, callback=_finite, help="--goodput: until a failed node is back; default: 24.")
    ] = None,
    checkpoint_stall: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            callback=_finite,
            help="--goodput: seconds that a checkpoint stops training; default: copying to the host.",
        ),
    ] = None,
) -> _Others:
    from megatron_sky.planner.run import Failures

    failures = Failures(node_mtbf_hours, restart_minutes, repair_hours, checkpoint_stall)
    return _Others(gpus_per_node, network, top, check, rows, calibrate, failures)


@with_options(_others)
def plan(
    options: Callable,
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... KEY=VALUE...", help="YAML files, layered left to right; then overrides."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs of the job.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU, as a800, h100 or b200, or a .yaml file of one.")] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="Every part of one layout in place of the search, as 'PP2 x DP256' or 'tp2 pp4 mb2 sp full'; "
            "'own' is the recipe's.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            help="Write the best or explained layout, to layer over RECIPE; with --calibrate what was measured, by "
            "default to machine.yaml.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw memory against speed of all layouts, or with --explain the pipeline (.png, .svg)."),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Best layouts and their limits on several numbers of GPUs, as 512,1024,4096.")
    ] = None,
    goodput: Annotated[
        bool,
        typer.Option("--goodput", help="Failures too: share of time that trains, checkpoint interval, spare nodes."),
    ] = False,
) -> None:
    """Find the best layout for a number of GPUs of a kind: its memory, speed and cost, before a GPU is asked for."""
    from megatron_sky.planner import run

    others = options()
    given: dict[str, object] = {"--explain": explain, "--out": out, "--picture": picture}
    given |= {"RECIPE": recipe or None, "--gpus": gpus, "--gpu": gpu, "--scale": scale}
    _check_effects(given, others, goodput=goodput)
    run.check_outputs({"--out": out, "--picture": picture})
    if others.check or others.calibrate:
        _without_recipe(others, out)
        return
    numbers = None if scale is None else run.read_numbers(scale)
    gpus = numbers[0] if numbers else gpus
    per_node, network = others.gpus_per_node, others.network
    job = run.read_job(recipe or [], gpus=gpus, gpu=gpu, gpus_per_node=per_node, network=network)
    if numbers is not None:
        run.print_scale(job, numbers)
    elif goodput:
        run.print_goodput(job, explain, others.failures)
    elif explain is None:
        run.print_search(job, top=others.top or 10, out=out, picture=picture)
    else:
        run.print_layout(job, explain, out=out, picture=picture)


def _without_recipe(others: _Others, out: Path | None) -> None:
    if others.calibrate:
        from megatron_sky.planner.calibration.command import calibrate

        calibrate(out or Path("machine.yaml"))
    else:
        from megatron_sky.planner.run import print_check

        print_check(others.rows)


def _words(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _check_effects(given: dict[str, object], others: _Others, *, goodput: bool) -> None:
    """Raises ConfigError of options that are given (not None) and have no effect with what is asked for."""
    from megatron_sky.errors import ConfigError, Problem

    failures = others.failures
    given |= {
        "--rows": others.rows,
        "--top": others.top,
        "--gpus-per-node": others.gpus_per_node,
        "--network": others.network,
        "--node-mtbf-hours": failures.node_mtbf_hours,
        "--restart-minutes": failures.restart_minutes,
        "--repair-hours": failures.repair_hours,
        "--checkpoint-stall": failures.checkpoint_stall_seconds,
    }
    questions = {
        "--check": others.check,
        "--calibrate": others.calibrate,
        "--scale": given.pop("--scale") is not None,
        "--goodput": goodput,
    }
    asked = [name for name, is_asked in questions.items() if is_asked]
    if len(asked) > 1:
        raise ConfigError(Problem(asked[1], f"can't go with {asked[0]}", "give one of them"))
    kind = asked[0] if asked else "--explain" if given["--explain"] is not None else "the search"
    problems = [
        Problem(name, f"has an effect with {_words(_ASKS[name])} only", "leave it out")
        for name, value in given.items()
        if value is not None and kind not in _ASKS[name]
    ]
    if problems:
        raise ConfigError(problems)
