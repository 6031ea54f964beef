"""`megatron-sky plan`: memory, speed and layout of a job, before a GPU is asked for."""

from pathlib import Path
from typing import Annotated

import typer


def plan(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... KEY=VALUE...", help="YAML files, layered left to right; then overrides."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs of the job.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU, as a800, h100 or b200.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="Default: the GPU's usual node.")] = None,
    network: Annotated[
        float | None, typer.Option(min=0.1, help="Gbit/s of one node's network; default: the GPU's usual node's.")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="Show this layout in place of the recipe's own, as 'PP2 x DP256' or 'tp2 pp4 mb2 sp full'.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Predict published measurements and show the errors.")] = False,
    rows: Annotated[Path | None, typer.Option(help="--check: a CSV file of measurements in place of the own.")] = None,
) -> None:
    """Predict memory, speed and cost of layouts for a number of GPUs of a kind."""
    from megatron_sky.planner import run

    if check:
        run.print_check(rows)
    else:
        run.print_plan(recipe or [], gpus=gpus, gpu=gpu, gpus_per_node=gpus_per_node, network=network, explain=explain)
