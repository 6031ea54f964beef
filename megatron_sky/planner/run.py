"""What `megatron-sky plan` does: the recipe and the machine in, the predictions out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.config import Config
from megatron_sky.config.load import load_recipe
from megatron_sky.config.validate import check
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import write_text
from megatron_sky.planner import published, show
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.hardware import Cluster, cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.layout_text import apply_layout, layout_words, overlay
from megatron_sky.planner.search import fixes, search

OWN = "own"


@dataclass(frozen=True)
class Asked:
    """A recipe on so many GPUs of a cluster."""

    config: Config
    cluster: Cluster
    num_gpus: int


def read_job(
    recipe: Sequence[str], *, gpus: int | None, gpu: str | None, gpus_per_node: int | None, network: float | None
) -> Asked:
    """What the command line says. Raises ConfigError of all that is missing. `network`: Gbit/s of a node."""
    problems = []
    if not recipe:
        problems.append(Problem("--check", "or a recipe is needed", "name a recipe's files, or ask for --check"))
    if gpus is None:
        problems.append(Problem("--gpus", "is needed", "say how many GPUs the job has"))
    if gpu is None:
        problems.append(Problem("--gpu", "is needed", "name the kind of GPU, as --gpu a800"))
    if problems or gpus is None or gpu is None:
        raise ConfigError(problems)
    node_gb_per_s = None if network is None else network / 8
    return Asked(load_recipe(recipe), cluster_of(find_gpu(gpu), gpus_per_node, node_gb_per_s), gpus)


def print_check(rows: Path | None) -> None:
    """The predictions beside published measurements: the project's own, or those of a file."""
    found, passed_over = published.read_rows(rows or published.OWN)
    print("\n".join(show.check_lines(found, passed_over)))


def print_search(asked: Asked, *, top: int, out: Path | None, picture: Path | None) -> None:
    """The best layouts, why the others fell, and what the best one costs."""
    if picture is not None:
        from megatron_sky.planner.picture import check_ending, draw_frontier

        check_ending(picture, "--picture")
    start = time.perf_counter()
    found = search(asked.config, asked.cluster, asked.num_gpus)
    seconds = time.perf_counter() - start
    print("\n".join(show.search_lines(found, asked.config, top=top, seconds=seconds)))
    if picture is not None:
        draw_frontier(found, picture)
        print(f"picture     {picture}")
    _write(out, found.fitting[0].config, asked)


def print_layout(asked: Asked, layout: str, *, out: Path | None, picture: Path | None) -> None:
    """One layout, part by part; where it does not fit, what would. The picture is of its pipeline."""
    if picture is not None:
        from megatron_sky.planner.picture import check_ending, draw_timeline
        from megatron_sky.planner.timeline import play

        check_ending(picture, "--picture")
    config = asked.config if layout == OWN else apply_layout(asked.config, layout, asked.num_gpus)
    check(config, asked.num_gpus)
    forecast = Forecast(Job.of(config, asked.cluster, asked.num_gpus))
    print(f"layout      {layout_words(config, asked.num_gpus)} on {asked.num_gpus} {asked.cluster.gpu.name}")
    print("\n".join(show.explain(forecast, config.train.tokens)))
    if picture is not None:
        draw_timeline(play(forecast.job), picture)
        print(f"picture     {picture}")
    if not forecast.fits:
        raise ConfigError(show.does_not_fit(forecast, fixes(config, asked.cluster, asked.num_gpus)))
    _write(out, config, asked)


def _write(out: Path | None, config: Config, asked: Asked) -> None:
    if out is not None:
        words = f"{layout_words(config, asked.num_gpus)} on {asked.num_gpus} {asked.cluster.gpu.name}"
        write_text(out, f"# {words}\n{overlay(config)}")
        print(f"written     {out}, to be layered over the recipe: megatron-sky train RECIPE {out}")
