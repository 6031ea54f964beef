"""`megatron-sky plan`: memory, speed and layout of a job, before a GPU is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_sky.cli._common import with_options

if TYPE_CHECKING:
    from megatron_sky.planner.run import Failures


def _failures(
    node_mtbf_hours: Annotated[
        float | None, typer.Option(min=1, help="--goodput: hours between failures of one node; default: 6335.")
    ] = None,
    restart_minutes: Annotated[
        float | None, typer.Option(min=0, help="--goodput: from a failure to training again; default: 10.")
    ] = None,
    repair_hours: Annotated[
        float | None, typer.Option(min=0, help="--goodput: until a failed node is back; default: 24.")
    ] = None,
    checkpoint_stall: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="--goodput: seconds that a checkpoint stops training; default: copying to the host."
        ),
    ] = None,
) -> "Failures":
    """What is said of failures."""
    from megatron_sky.planner.run import Failures

    return Failures(node_mtbf_hours, restart_minutes, repair_hours, checkpoint_stall)


@with_options(_failures)
def plan(
    options: Callable,
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... KEY=VALUE...", help="YAML files, layered left to right; then overrides."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs of the job.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU, as a800, h100 or b200, or a .yaml file of one.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Default: as the GPU is usually built in.")] = None,
    network: Annotated[
        float | None, typer.Option(min=0.1, help="Gbit/s of one node's network; default: as usually built.")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="Every part of one layout in place of the search, as 'PP2 x DP256' or 'tp2 pp4 mb2 sp full'; "
            "'own' is the recipe's.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Show this many layouts.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Write the best layout, or the explained one, as a recipe to layer over this.")
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
        typer.Option(
            "--goodput", help="Failures too: share of time that trains, best checkpoint interval, spare nodes."
        ),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Predict published measurements and show the errors.")] = False,
    rows: Annotated[
        Path | None, typer.Option(help="--check: a CSV file of measurements in place of the project's own.")
    ] = None,
) -> None:
    """Find the best layout for a number of GPUs of a kind: its memory, speed and cost, before a GPU is asked for."""
    from megatron_sky.planner import run

    if check:
        run.print_check(rows)
        return
    numbers = None if scale is None else run.read_numbers(scale)
    if numbers is not None and gpus is None:
        gpus = numbers[0]
    job = run.read_job(recipe or [], gpus=gpus, gpu=gpu, gpus_per_node=gpus_per_node, network=network)
    if numbers is not None:
        run.print_scale(job, numbers)
    elif goodput:
        run.print_goodput(job, explain, options())
    elif explain is None:
        run.print_search(job, top=top, out=out, picture=picture)
    else:
        run.print_layout(job, explain, out=out, picture=picture)
