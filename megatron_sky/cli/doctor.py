"""`megatron-sky doctor`: whether this machine can train, and what it lacks."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    run_dir: Annotated[Path, typer.Option(help="Where runs will be written; its disk is timed.")] = Path("runs"),
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes of the self-test; default: one a GPU, or 2 on a CPU.")
    ] = None,
    disk_mib: Annotated[int, typer.Option(min=1, help="Size of the file that times the disk, in MiB.")] = 256,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Look at GPUs, software, network and disk: what is there, what is missing, what that costs and how to get it.

    Exit code 0: a run can be started here; 1: something stands in its way.
    """
    from megatron_sky.doctor import examine
    from megatron_sky.doctor.page import text

    report = examine(run_dir, ranks=ranks, disk_mib=disk_mib)
    if json:
        import json as encoder

        print(encoder.dumps(report, indent=2))
    else:
        print(text(report))
    if not report["healthy"]:
        raise typer.Exit(1)
