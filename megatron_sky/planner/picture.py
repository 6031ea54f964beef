"""Pictures of a search and of a pipeline: numbers to PNG or SVG, by matplotlib's object API."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import write_bytes
from megatron_sky.palette import COLOURS, GRID, INK, MUTED
from megatron_sky.planner.forecast import usable_bytes
from megatron_sky.planner.memory import GIB
from megatron_sky.planner.search import SearchOutcome
from megatron_sky.planner.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {
    "forward": COLOURS[0],
    "backward": COLOURS[1],
    "send": COLOURS[4],
    "gradients": COLOURS[3],
    "update": COLOURS[2],
}
ENDINGS = (".png", ".svg")


def check_ending(path: Path, option: str) -> None:
    """Raises ConfigError where no picture can be written under this name."""
    if path.suffix not in ENDINGS:
        raise ConfigError(Problem(option, "a picture is a .png or .svg file", "end it so", str(path)))


def draw_frontier(outcome: SearchOutcome, path: Path) -> None:
    """Memory against speed: a dot for each layout that fits, a line through those that none beats in both."""
    figure, axes = _figure(7.2, 4.6)
    axes.scatter(*_points(outcome.fitting), s=9, color=MUTED, alpha=0.5, linewidths=0, label="fits")
    front = outcome.frontier()
    axes.plot(*_points(front), "o-", color=COLOURS[0], markersize=4, linewidth=1.2, label="smallest for its speed")
    best = outcome.fitting[0]
    room = usable_bytes(best.forecast.job) / GIB
    axes.axvline(room, color=COLOURS[6], linestyle="--", linewidth=1, label=f"{room:.1f} GiB can be used")
    for number, candidate in enumerate(front[:1] + front[-1:]):
        x, y = candidate.forecast.memory.total / GIB, candidate.forecast.tokens_per_second_per_gpu
        place = {"xytext": (-6, 8), "ha": "right"} if number == 0 else {"xytext": (0, -14), "ha": "left"}
        axes.annotate(candidate.words, (x, y), textcoords="offset points", fontsize=8, color=INK, **place)
    axes.set_xlabel("GiB of a GPU at its peak")
    axes.set_ylabel("tokens/s a GPU")
    axes.set_ylim(bottom=0, top=best.forecast.tokens_per_second_per_gpu * 1.12)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def draw_timeline(timeline: Timeline, path: Path) -> None:
    """What each pipeline stage does when; white is waiting."""
    stages = 1 + max(span.stage for span in timeline.spans)
    figure, axes = _figure(10, 1.6 + 0.45 * stages)
    edge = 0.3 if len(timeline.spans) < 150 * stages else 0.0  # more passes than there is room for edges
    for kind, colour in _KINDS.items():
        named = kind
        for stage in range(stages):
            spans = [(span.start, span.seconds) for span in timeline.spans if span.stage == stage and span.kind == kind]
            if spans:
                axes.broken_barh(
                    spans, (stage - 0.4, 0.8), facecolor=colour, edgecolor="white", linewidth=edge, label=named
                )
                named = "_" + kind  # a legend's entry is made once
    axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds; {100 * timeline.idle_share():.1f} % of it waiting or sending")
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def _points(candidates: list) -> tuple[list[float], list[float]]:
    memory = [candidate.forecast.memory.total / GIB for candidate in candidates]
    return memory, [candidate.forecast.tokens_per_second_per_gpu for candidate in candidates]


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    axes = figure.subplots()
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: "Figure", path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())
