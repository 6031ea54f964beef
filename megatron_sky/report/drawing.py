"""What the report's pictures are drawn with: numbers -> SVG, by matplotlib's object API (no pyplot, no state).

A long run has more steps than a picture has pixels. The raw curve is therefore thinned to the lowest and highest value
of each of a fixed number of stretches, which keeps every spike visible and the file small; over it lies a centred
moving average. Labels in a picture are ASCII: names of domains, in whatever script, stand in the page's own legend.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_sky.config.units import SCALES
from megatron_sky.palette import COLOURS, GRID, INK, MUTED
from megatron_sky.report.content import LegendEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT = COLOURS[0]
_NAMES = ("blue", "orange", "green", "magenta", "violet", "olive", "red", "sky blue")
# For raw curves, and for areas after the full colours.
PALE = ("#a9c4e2", "#f3cda8", "#aedccb", "#e3b9d3", "#c1bce2", "#d6c9a0", "#e9b5b5", "#b3dae8")
PALE_GREY, BOUND = "#cbd2d9", "#616e7c"
_START = 0.05
LINE_STYLES = {"solid": "-", "dashed": "--", "dotted": ":"}
_STRETCHES = 500
_FEW = 20
STYLE: dict[Any, object] = {  # keys are matplotlib's own
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Curve:
    """A line of a picture: `y` over `x` consumed tokens. `number` chooses its colour; nameless where it is alone."""

    name: str
    x: Sequence[int]
    y: Sequence[float]
    number: int = 0

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def pale(self) -> str:
        return PALE[self.number % len(PALE)]

    @property
    def entry(self) -> LegendEntry:
        """A second round of colours is dashed."""
        return LegendEntry(self.name, self.colour, "dashed" if self.number // len(COLOURS) % 2 == 1 else "solid")


@dataclass(frozen=True)
class Marks:
    """Consumed tokens that every picture of a run shows: where it resumed, and where a session begins after another.

    `sessions` names the sessions between the bounds.
    """

    resumes: Sequence[int] = ()
    bounds: Sequence[int] = ()
    sessions: Sequence[str] = ()


Numbers = Sequence[float] | np.ndarray


def smooth(values: Numbers, window: int) -> np.ndarray:
    """Centred mean over `window` values (made odd), narrower towards the ends so that it stays centred.

    What is not finite is left out of the means; where a whole window is, the result is NaN.
    """
    array = np.asarray(values, dtype=float)
    finite = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(len(array))
    half = np.minimum(window // 2, np.minimum(place, place[::-1]))
    low, high = place - half, place + half + 1
    number = counts[high] - counts[low]
    return np.divide(sums[high] - sums[low], number, out=np.full(len(array), np.nan), where=number > 0)


def thin(across: Numbers, up: Numbers, stretches: int = _STRETCHES) -> tuple[np.ndarray, np.ndarray]:
    """At most `2 * stretches` points of a curve: of each stretch its lowest and highest, in order, ends included."""
    x, y = np.asarray(across, dtype=float), np.asarray(up, dtype=float)
    if len(x) <= 2 * stretches:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), stretches - 1):
        finite = stretch[np.isfinite(y[stretch])]
        chosen = (finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]) if len(finite) else (stretch[0],)
        keep.update(int(index) for index in chosen)
    order = sorted(keep)
    return x[order], y[order]


def colour_name(colour: str) -> str:
    """In words, for a legend that can't show the colour."""
    names = dict(zip(COLOURS, _NAMES, strict=True))
    names |= {pale: f"pale {name}" for pale, name in zip(PALE, _NAMES, strict=True)}
    return (names | {INK: "black", BOUND: "black", MUTED: "grey", PALE_GREY: "pale grey"})[colour]


def new_figure(label: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("consumed tokens")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_ticks(count_labels))
    axes.yaxis.set_major_formatter(_ticks(tick_labels))
    axes.tick_params(length=0)
    return figure, axes


def _ticks(labels: Callable[[Sequence[float]], list[str]]):
    """A matplotlib formatter that words all of an axis's ticks together."""
    from matplotlib.ticker import Formatter

    class Together(Formatter):
        def __call__(self, value, pos=None):
            return labels([value])[0]

        def format_ticks(self, values):
            return labels(values)

    return Together()


def count_labels(values: Sequence[float]) -> list[str]:
    """An axis of counts: 0, 500_000, 1_000_000 -> `0`, `0.5M`, `1M`."""
    largest = max(map(abs, values), default=0.0)
    for suffix, scale in SCALES:
        if largest >= scale:
            return [f"{value / scale:.4g}{suffix}" if value else "0" for value in values]
    return [f"{value:.4g}" for value in values]


def tick_labels(values: Sequence[float]) -> list[str]:
    """An axis in one form, also of learning rates: 0, 0.0005, 0.001 -> `0`, `0.5e-3`, `1e-3`."""
    largest = max(map(abs, values), default=0.0)
    values = [value if abs(value) > 1e-9 * largest else 0.0 for value in values]
    if largest >= 1e4:
        return count_labels(values)
    if all(abs(value) >= 1e-3 for value in values if value):
        return [f"{value:.4g}" for value in values]
    exponent = int(f"{largest:.3e}".split("e")[1])
    return [f"{value / 10.0**exponent:.4g}e{exponent}" if value else "0" for value in values]


def _finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def draw_lines(axes: "Axes", curves: Sequence[Curve], width: float = 1.3) -> list[LegendEntry]:
    """Each curve as it is. Returns the entries of those with a name."""
    for curve in curves:
        x, y = thin(curve.x, _finite(curve.y))
        style = LINE_STYLES[curve.entry.line]
        axes.plot(x, y, color=curve.colour, linestyle=style, linewidth=width, marker=_marker(x), ms=3)
    return [curve.entry for curve in curves if curve.name]


def draw_noisy(axes: "Axes", curves: Sequence[Curve], window: int) -> list[LegendEntry]:
    """Each curve pale, and over all of them their means over `window` values. Returns the legend."""
    if window <= 1:
        return draw_lines(axes, curves) or [LegendEntry("each step", curves[0].colour)]
    for curve in curves:
        axes.plot(*thin(curve.x, _finite(curve.y)), color=curve.pale, linewidth=0.7)
    for curve in curves:
        x, y = thin(curve.x, smooth(curve.y, window))
        dot = "o" if len(x) == 1 else ""  # a session just entered
        axes.plot(x, y, color=curve.colour, linestyle=LINE_STYLES[curve.entry.line], linewidth=1.5, marker=dot, ms=3)
    mean = f"mean over {window // 2 * 2 + 1:,} steps"
    if len(curves) == 1 and not curves[0].name:
        return [LegendEntry("each step", curves[0].pale), LegendEntry(mean, curves[0].colour)]
    entries = [curve.entry for curve in curves]
    return [*entries, LegendEntry("each step", PALE_GREY), LegendEntry(mean, MUTED)]


def cut_start(axes: "Axes", curves: Sequence[Curve], levels: Sequence[float] = ()) -> None:
    """Leaves a long curve's steep fall at its start above the picture, where half of the height would show that alone.

    The start is the first twentieth of the tokens; `levels` are other values to keep in sight.
    """
    x, y = (np.concatenate([np.asarray(getattr(curve, name), dtype=float) for curve in curves]) for name in "xy")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if max(len(curve.x) for curve in curves) <= _FEW or not len(y):
        return
    later = y[x >= x.min() + _START * (x.max() - x.min())]
    low, high = min([y.min(), *levels]), max([later.max(), *levels])
    room = 0.05 * (high - low)
    if y.max() - low > 2 * (high - low) > 0:
        axes.set_ylim(low - room, high + room)
        axes.set_ylabel(f"{axes.get_ylabel()}\n(start cut off)")


def draw_level(axes: "Axes", value: float, words: str, meaning: str) -> LegendEntry:
    """A dashed line over the whole width, named in the picture (so `words` must be ASCII) and in the legend."""
    axes.axhline(value, color=INK, linestyle=(0, (5, 3)), linewidth=1.0)
    axes.annotate(
        f"{words} {value:.2f}",
        xy=(1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=INK,
    )
    return LegendEntry(meaning, INK, "dashed")


def draw_marks(axes: "Axes", marks: Marks) -> list[LegendEntry]:
    """The run's resumes and the bounds of its sessions."""
    for tokens in marks.resumes:
        axes.axvline(tokens, color=MUTED, linestyle=":", linewidth=0.9, zorder=0.5)
    for tokens in marks.bounds:
        axes.axvline(tokens, color=BOUND, linewidth=0.7, zorder=0.6)
    legend = [LegendEntry("resume", MUTED, "dotted")] if marks.resumes else []
    if marks.bounds:
        names = f": {' | '.join(marks.sessions)}" if marks.sessions else ""
        legend.append(LegendEntry(f"session bounds{names}", BOUND))
    return legend


def has_finite(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _marker(points: Numbers) -> str:
    """Few points are drawn as dots too: a line of one point would be invisible."""
    return "o" if len(points) <= _FEW else ""


def to_svg(figure: "Figure", salt: str) -> bytes:
    """The figure as SVG; the same run gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    return out.getvalue()
