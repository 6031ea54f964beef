"""The report's pictures: numbers -> SVG, by matplotlib's object API (no pyplot, no state left behind).

A long run has more steps than a picture has pixels. The raw curve is therefore thinned to the lowest and highest value
of each of a fixed number of stretches, which keeps every spike visible and the file small; over it lies a centred
moving average. Labels in a picture are ASCII: names of domains, in whatever script, stand in the page's own legend.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_sky.report.run import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, ACCENT = "#1f2933", "#7b8794", "#e4e7eb", "#2563a8"
# Distinct in hue and lightness, also for the colour-blind (after Okabe and Ito); a second round is dashed.
COLOURS = ("#2563a8", "#d9730d", "#2a9d6f", "#b5478c", "#5b4fb3", "#8a6d1d", "#c43d3d", "#3aa0c4")
_STRETCHES = 500
_STYLE = {
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
class LegendEntry:
    """A line of the page's legend: what the line of this colour is."""

    name: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture and what stands around it."""

    title: str
    description: str
    svg: bytes
    legend: list[LegendEntry]


def smooth(values: Sequence[float], window: int) -> np.ndarray:
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


def thin(x: Sequence[float], y: Sequence[float], stretches: int = _STRETCHES) -> tuple[np.ndarray, np.ndarray]:
    """At most `2 * stretches` points of a curve: of each stretch its lowest and highest, in order, ends included."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= 2 * stretches:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), stretches - 1):
        finite = stretch[np.isfinite(y[stretch])]
        chosen = (finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]) if len(finite) else (stretch[0],)
        keep.update(int(each) for each in chosen)
    order = sorted(keep)
    return x[order], y[order]


def draw_pictures(run: RunData) -> list[Picture]:
    """All pictures that the run has data for."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        pictures = [_train_loss(run), _validation_loss(run)] + [_curve(run, *each) for each in _CURVES]
    return [each for each in pictures if each is not None]


_CURVES = (
    ("lr", "Learning rate", "learning rate"),
    ("grad_norm", "Gradient norm", "L2 norm before clipping"),
    ("tokens_per_second", "Throughput", "tokens per second, all ranks"),
)


def _train_loss(run: RunData) -> Picture | None:
    if not _has_finite([each.lm_loss for each in run.metrics.train]):
        return None
    figure, axes = _figure("loss, nats per token")
    tokens = [each.consumed_tokens for each in run.metrics.train]
    legend = _raw_and_smooth(axes, tokens, [each.lm_loss for each in run.metrics.train])
    if run.unigram_entropy is not None:
        axes.axhline(run.unigram_entropy, color=INK, linestyle=(0, (5, 3)), linewidth=1.0)
        axes.annotate(
            f"unigram entropy {run.unigram_entropy:.2f}",
            xy=(1.0, run.unigram_entropy),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color=INK,
        )
        legend.append(LegendEntry("unigram entropy of the training corpus", INK, dashed=True))
    legend += _mark_resumes(axes, run)
    return Picture("Training loss", "Training loss over consumed tokens", _svg(figure, "train_loss"), legend)


def _validation_loss(run: RunData) -> Picture | None:
    if not _has_finite([each.lm_loss for each in run.metrics.validation]):
        return None
    figure, axes = _figure("loss, nats per token")
    legend = []
    for number, domain in enumerate(run.domains):
        records = [each for each in run.metrics.validation if each.set == domain.name]
        entry = LegendEntry(domain.name, COLOURS[number % len(COLOURS)], dashed=number // len(COLOURS) % 2 == 1)
        x, y = thin([each.consumed_tokens for each in records], _finite([each.lm_loss for each in records]))
        axes.plot(
            x, y, color=entry.colour, linestyle="--" if entry.dashed else "-", linewidth=1.3, marker=_marker(x), ms=3
        )
        legend.append(entry)
    legend += _mark_resumes(axes, run)
    return Picture("Validation loss by domain", "Loss of each validation set", _svg(figure, "validation"), legend)


def _curve(run: RunData, field: str, title: str, label: str) -> Picture | None:
    values = [getattr(each, field) for each in run.metrics.train]
    if not _has_finite(values):
        return None
    figure, axes = _figure(label)
    tokens = [each.consumed_tokens for each in run.metrics.train]
    if field == "lr":
        x, y = thin(tokens, values)
        axes.plot(x, y, color=ACCENT, linewidth=1.4, marker=_marker(x), ms=3)
        legend = []
    else:
        legend = _raw_and_smooth(axes, tokens, values)
    axes.set_ylim(bottom=0)
    legend += _mark_resumes(axes, run)
    return Picture(title, f"{title} over consumed tokens", _svg(figure, field), legend)


def _raw_and_smooth(axes: "Axes", tokens: Sequence[int], values: Sequence[float]) -> list[LegendEntry]:
    values = _finite(values)
    window = max(1, len(values) // 50)
    x, y = thin(tokens, values)
    if window == 1:
        axes.plot(x, y, color=ACCENT, linewidth=1.3, marker=_marker(x), ms=3)
        return [LegendEntry("each step", ACCENT)]
    raw = "#a9c4e2"
    axes.plot(x, y, color=raw, linewidth=0.7)
    x, y = thin(tokens, smooth(values, window))
    axes.plot(x, y, color=ACCENT, linewidth=1.5)
    return [LegendEntry("each step", raw), LegendEntry(f"mean over {window // 2 * 2 + 1:,} steps", ACCENT)]


def _mark_resumes(axes: "Axes", run: RunData) -> list[LegendEntry]:
    for tokens in run.resume_tokens:
        axes.axvline(tokens, color=MUTED, linestyle=":", linewidth=0.9, zorder=0.5)
    return [LegendEntry("resume", MUTED, dashed=True)] if run.resume_tokens else []


def _figure(label: str):
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("consumed tokens")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.tick_params(length=0)
    return figure, axes


def short_count(value: float) -> str:
    """2_500_000 -> `2.5M`, for an axis."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"


def _tick(value: float) -> str:
    """Also for learning rates: 0.0006 -> `6e-4`."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if abs(value) >= 1e4:
        return short_count(value)
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def _has_finite(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _marker(points: Sequence[float]) -> str:
    """Few points are drawn as dots too: a line of one point would be invisible."""
    return "o" if len(points) <= 20 else ""


def _svg(figure, salt: str) -> bytes:
    """The figure as SVG; the same run gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    return out.getvalue()
