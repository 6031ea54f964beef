"""What `megatron-sky plan` does: the recipe and the machine in, the predictions out."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.config import Config
from megatron_sky.config.load import load_recipe
from megatron_sky.config.validate import check
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import write_text
from megatron_sky.log import get_logger
from megatron_sky.planner import hardware, published, show
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.goodput import Reliability, too_often
from megatron_sky.planner.hardware import Cluster, cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.layout_text import apply_layout, layout_words, overlay
from megatron_sky.planner.remedies import fixes, nothing_fits
from megatron_sky.planner.scaling import scale
from megatron_sky.planner.search import search

log = get_logger(__name__)
OWN = "own"


@dataclass(frozen=True)
class Asked:
    """A recipe on so many GPUs of a cluster."""

    config: Config
    cluster: Cluster
    num_gpus: int

    def words(self, config: Config) -> str:
        """The recipe's layout, as in `config`, on these GPUs."""
        return f"{layout_words(config, self.num_gpus)} on {self.num_gpus} {self.cluster.gpu.name}"


def read_job(
    recipe: Sequence[str], *, gpus: int | None, gpu: str | None, gpus_per_node: int | None, network: float | None
) -> Asked:
    """What the command line says. Raises ConfigError of all that is missing. `network`: Gbit/s of a node."""
    problems = []
    if not recipe:
        problems.append(Problem("RECIPE", "is needed", "name a recipe's files, or ask for --check"))
    if gpus is None:
        problems.append(Problem("--gpus", "is needed", "say how many GPUs the job has"))
    if gpu is None:
        problems.append(Problem("--gpu", "is needed", "name the kind of GPU, as --gpu a800"))
    if problems or gpus is None or gpu is None:
        raise ConfigError(problems)
    node_gb_per_s = None if network is None else network / 8
    asked = Asked(load_recipe(recipe), cluster_of(find_gpu(gpu), gpus_per_node, node_gb_per_s), gpus)
    rates, threads = asked.cluster.rates(gpus), asked.config.train.num_threads
    if rates is not None and rates.threads and threads not in (0, rates.threads):
        log.warning(
            f"{gpu} was measured with {rates.threads} threads a process, and the recipe has train.num_threads = "
            f"{threads}: its steps will take another time"
        )
    return asked


@dataclass(frozen=True)
class Failures:
    """What the command line says of failures; None: as the coefficients say."""

    node_mtbf_hours: float | None
    restart_minutes: float | None
    repair_hours: float | None
    checkpoint_stall_seconds: float | None


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """Raises ConfigError where an option names no place for a file, before anything is computed for it."""
    problems = []
    for option, path in outputs.items():
        if path is None:
            continue
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        if path.is_dir():
            problems.append(Problem(option, "is a folder", "name a file in it", str(path)))
        elif not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            problems.append(
                Problem(option, f"can't be written: {folder} is no folder that you may write to", "", str(path))
            )
    if problems:
        raise ConfigError(problems)


def read_numbers(text: str) -> list[int]:
    """`512,1024` as numbers of GPUs, in order. Raises ConfigError where they are none."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(Problem("--scale", "must be numbers of GPUs", "write them as 512,1024,4096", text))
    return sorted({int(word) for word in words})


def print_scale(asked: Asked, numbers: Sequence[int]) -> None:
    """The best layout on each number of GPUs, with the recipe's batch and with one that grows."""
    for weak in (False, True):
        points = scale(asked.config, asked.cluster, numbers, weak=weak)
        print("\n".join(show.scale_lines(points, weak=weak)))
    if all(point.best is None for point in points):
        raise ConfigError(Problem("--scale", points[0].limit, "use other numbers of GPUs, or another batch"))


def print_goodput(asked: Asked, layout: str | None, said: Failures) -> None:
    """The best layout, or the one named, with nodes that fail."""
    config = _layout(asked, layout)
    forecast = Forecast(Job.of(config, asked.cluster, asked.num_gpus))
    c = hardware.coefficients()
    memory, per_node = forecast.memory, asked.cluster.gpus_per_node
    copied = (memory.weights + memory.optimizer) / (c["host_copy_gb_per_s"] * 1e9)
    restart = c["restart_seconds"] if said.restart_minutes is None else 60 * said.restart_minutes
    reliability = Reliability(
        num_nodes=-(-asked.num_gpus // per_node),
        node_mtbf_hours=said.node_mtbf_hours or c["node_mtbf_hours"],
        restart_seconds=restart,
        checkpoint_stall_seconds=said.checkpoint_stall_seconds or copied,
        repair_hours=c["repair_hours"] if said.repair_hours is None else said.repair_hours,
    )
    if lost := too_often(reliability):
        raise ConfigError(Problem("--goodput", lost, "give a larger --node-mtbf-hours, or shorter times"))
    print(f"layout      {asked.words(config)}")
    print("\n".join(show.goodput_lines(forecast, reliability, config.train.tokens)))


def _layout(asked: Asked, layout: str | None) -> Config:
    """The recipe in the layout that is named, else in the best that there is."""
    if layout is None:
        outcome = search(asked.config, asked.cluster, asked.num_gpus)
        if not outcome.fitting:
            raise ConfigError(nothing_fits(asked.config, asked.cluster, asked.num_gpus, outcome))
        return outcome.fitting[0].config
    config = asked.config if layout == OWN else apply_layout(asked.config, layout, asked.num_gpus)
    check(config, asked.num_gpus)
    return config


def print_check(rows: Path | None) -> None:
    """The predictions beside published measurements: the project's own, or those of a file."""
    if rows is not None and not rows.is_file():
        fix = f"name a CSV file with the columns of {published.OWN.name}"
        raise ConfigError(Problem("--rows", "is no file", fix, str(rows)))
    rows_read, passed_over = published.read_rows(rows or published.OWN)
    print("\n".join(show.check_lines(rows_read, passed_over)))


def print_search(asked: Asked, *, top: int, out: Path | None, picture: Path | None) -> None:
    """The best layouts, why the others fell, and what the best one costs."""
    if picture is not None:
        from megatron_sky.planner.picture import check_ending, draw_frontier

        check_ending(picture, "--picture")
    start = time.perf_counter()
    outcome = search(asked.config, asked.cluster, asked.num_gpus)
    seconds = time.perf_counter() - start
    if not outcome.fitting:
        raise ConfigError(nothing_fits(asked.config, asked.cluster, asked.num_gpus, outcome))
    print("\n".join(show.search_lines(outcome, asked.config, top=top, seconds=seconds)))
    if picture is not None:
        draw_frontier(outcome, picture)
        print(f"picture     {picture}")
    _write(out, outcome.fitting[0].config, asked)


def print_layout(asked: Asked, layout: str, *, out: Path | None, picture: Path | None) -> None:
    """One layout, part by part; where it does not fit, what would. The picture is of its pipeline."""
    if picture is not None:
        from megatron_sky.planner.picture import check_ending, draw_timeline
        from megatron_sky.planner.timeline import play

        check_ending(picture, "--picture")
    config = _layout(asked, layout)
    forecast = Forecast(Job.of(config, asked.cluster, asked.num_gpus))
    print(f"layout      {asked.words(config)}")
    print("\n".join(show.explain(forecast, config.train.tokens)))
    if picture is not None:
        draw_timeline(play(forecast.job), picture)
        print(f"picture     {picture}")
    if not forecast.fits:
        raise ConfigError(show.does_not_fit(layout, forecast, fixes(config, asked.cluster, asked.num_gpus)))
    _write(out, config, asked)


def _write(out: Path | None, config: Config, asked: Asked) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, f"# {asked.words(config)}\n{overlay(config)}")
        print(f"written     {out}, to be layered over the recipe: megatron-sky train RECIPE {out}")
