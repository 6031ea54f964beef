"""`megatron-sky slurm ...`: submit, status, cancel; and the steps of `slurm/train.sbatch` before and after training."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_sky.cli._common import Recipe, verb_group, with_options

if TYPE_CHECKING:
    from megatron_sky.slurm.site import Site

app = verb_group("Runs on a Slurm cluster: submit, status, cancel.")
attempt = verb_group("Used by slurm/train.sbatch before and after each attempt.")
app.add_typer(attempt, name="attempt", hidden=True)

RunDir = Annotated[Path, typer.Argument(help="Run folder.")]
MaxRequeues = Annotated[int, typer.Option(min=0, help="Crashes after which the job is started again, at most.")]


def site_options(
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs of a node; 0: none.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Processes a node; default: one a GPU.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Cores of each process.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of a training job, as 24:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that is charged.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    container: Annotated[str | None, typer.Option(help="Image: .sqsh or registry (pyxis), .sif (apptainer).")] = None,
    max_requeues: Annotated[int | None, typer.Option(min=0, help="Crashes that are started again, at most.")] = None,
    site: Annotated[Path | None, typer.Option(help="Site profile; default: ~/.config/megatron_sky/site.yaml.")] = None,
) -> "Site":
    from megatron_sky.slurm.site import load_site, overridden

    return overridden(
        load_site(site),
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        max_requeues=max_requeues,
        image=container,
    )


@app.command()
@with_options(site_options)
def submit(
    recipe: Recipe,
    options: Callable[[], "Site"],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the jobs; default: the run folder's.")] = None,
    evaluate: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE.jsonl", help="Evaluate every checkpoint on this afterwards.")
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="Export the series of checkpoints afterwards.")] = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the scripts; check the recipe's rules, queue nothing.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Stay, and print what the jobs write.")] = False,
) -> None:
    """Check a recipe against its layout, and queue it: one job a session, then evaluation and release.

    Options given here come before the site profile. The jobs requeue themselves until the token budget is met.
    """
    from megatron_sky.config.load import load_recipe
    from megatron_sky.config.validate import check
    from megatron_sky.slurm.render import render
    from megatron_sky.slurm.submit import Wanted, check_idle, name_of, plan_jobs, world_size
    from megatron_sky.slurm.submit import follow as follow_jobs
    from megatron_sky.slurm.submit import submit as queue_jobs

    profile = options()
    config = load_recipe(recipe)
    run_dir = Path(config.train.run_dir)
    wanted = Wanted(nodes, name or name_of(run_dir), Path.cwd(), tuple(evaluate or ()), release)
    wanted.check()
    ranks = world_size(profile, nodes)
    check(config, ranks)  # its rules alone, before torch is imported for the rest
    if print_only:
        for job in plan_jobs(config, profile, wanted):
            print(render(job, profile))
        return
    from megatron_sky.trainer.dry_run import print_plan

    check_idle(run_dir)
    print_plan(config, ranks)
    for queued in queue_jobs(config, plan_jobs(config, profile, wanted), profile):
        print(f"job {queued.job_id}: {queued.name} ({queued.script})")
    print(f"megatron-sky slurm status {run_dir}")
    if follow:
        follow_jobs(run_dir, lambda text: print(text, end="", flush=True))


@app.command()
def status(run_dir: RunDir) -> None:
    """Show a run's jobs, step, speed, time left and last checkpoint."""
    from megatron_sky.slurm.status import status_lines

    for line in status_lines(run_dir):
        print(line)


@app.command()
def cancel(
    run_dir: RunDir,
    wait: Annotated[float, typer.Option(min=0, help="Seconds in which the running job may save.")] = 600.0,
) -> None:
    """Stop a run's jobs in order: what waits leaves the queue, what runs saves first; nothing is requeued."""
    from megatron_sky.slurm.cancel import cancel_run

    cancel_run(run_dir, wait_seconds=wait, say=print)


@attempt.command()
def begin(recipe: Recipe, max_requeues: MaxRequeues = 3) -> None:
    """Enter an attempt in the run folder and print its folder; fails where the job should not go on."""
    from megatron_sky.config.load import load_recipe
    from megatron_sky.slurm import attempts

    config = load_recipe(recipe)
    print(attempts.begin(config, max_requeues=max_requeues))


@attempt.command()
def end(
    folder: Annotated[Path, typer.Argument(help="The attempt's folder, as begin printed it.")],
    exit_code: Annotated[int, typer.Option(help="Exit code of the training step.")],
    max_requeues: MaxRequeues = 3,
) -> None:
    """Enter how an attempt ended, and print done, requeue or stop."""
    from megatron_sky.slurm import attempts

    decision, cause = attempts.end(folder, exit_code, max_requeues=max_requeues)
    if cause:
        print(cause, file=sys.stderr)
    print(f"{decision.action}: {decision.reason}", file=sys.stderr)
    print(decision.action)
