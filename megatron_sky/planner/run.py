"""What `megatron-sky plan` does: the recipe and the machine in, the predictions out."""

from collections.abc import Sequence
from pathlib import Path

from megatron_sky.config import Config
from megatron_sky.config.load import load_recipe
from megatron_sky.config.validate import check
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.planner import published, show
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.hardware import Cluster, cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.layout_text import apply_layout, layout_words


def print_check(rows: Path | None) -> None:
    """The predictions beside published measurements: the project's own, or those of a file."""
    found, passed_over = published.read_rows(rows or published.OWN)
    print("\n".join(show.check_lines(found, passed_over)))


def print_plan(
    recipe: Sequence[str],
    *,
    gpus: int | None,
    gpu: str | None,
    gpus_per_node: int | None,
    network: float | None,
    explain: str | None,
) -> None:
    """One layout of the recipe, part by part."""
    config, cluster, world_size = _read(recipe, gpus, gpu, gpus_per_node, network)
    if explain is not None:
        config = apply_layout(config, explain, world_size)
    check(config, world_size)
    forecast = Forecast(Job.of(config, cluster, world_size))
    print(f"layout      {layout_words(config, world_size)} on {world_size} {cluster.gpu.name}")
    print("\n".join(show.explain(forecast, config.train.tokens)))


def _read(
    recipe: Sequence[str], gpus: int | None, gpu: str | None, gpus_per_node: int | None, network: float | None
) -> tuple[Config, Cluster, int]:
    problems = []
    if not recipe:
        problems.append(Problem("RECIPE", "is needed", "name a recipe, or ask for --check"))
    if gpus is None:
        problems.append(Problem("--gpus", "is needed", "say how many GPUs the job has"))
    if gpu is None:
        problems.append(Problem("--gpu", "is needed", "name the kind of GPU, as --gpu a800"))
    if problems or gpus is None or gpu is None:
        raise ConfigError(problems)
    node = None if network is None else network / 8
    return load_recipe(recipe), cluster_of(find_gpu(gpu), gpus_per_node, node), gpus
