"""Results as a picture: a dot for each model and domain, or for each model's deltas with their intervals."""

import io
from collections.abc import Sequence

from megatron_sky.evaluate.results import LeakageResults, LossResults
from megatron_sky.palette import COLOURS, GRID, MUTED

_MARKERS = "osD^vPX*"


def loss_png(results: LossResults) -> bytes:
    """Normalised loss of every model on every domain; the average last."""
    names = [domain.name for domain in results.domains]
    figure, axes = _figure(len(names) + 1)
    for number, model in enumerate(results.models):
        losses = [*(model.domains[name].normalised_loss for name in names), model.average.normalised_loss]
        axes.plot(
            losses,
            range(len(losses)),
            _MARKERS[number % 8],
            color=COLOURS[number % 8],
            label=_label(model.model.name, number),
        )
    _label_rows(axes, [*names, "average"])
    axes.set_xlabel("loss, nats per reference token")
    return _png(figure, axes)


def leakage_png(results: LeakageResults) -> bytes:
    """delta1 and delta2 of every model, their intervals as bars, the margins of the verdicts as dashed lines."""
    figure, axes = _figure(len(results.models))
    for number, (name, word) in enumerate((("delta1", "L_test - L_ref"), ("delta2", "L_test - L_train"))):
        values = [getattr(model.comparisons[0], name) for model in results.models]
        rows = [row + 0.18 * (2 * number - 1) for row in range(len(values))]
        sides = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        points = [v.value for v in values]
        axes.errorbar(points, rows, xerr=sides, fmt=_MARKERS[number], color=COLOURS[number], label=f"{name} = {word}")
    for row, model in enumerate(results.models):
        limit = results.margin * model.comparisons[0].reference.value
        axes.plot([-limit, -limit], [row - 0.4, row + 0.4], "--", color=MUTED, linewidth=1)
        axes.plot([limit, limit], [row - 0.4, row + 0.4], "--", color=MUTED, linewidth=1)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    _label_rows(axes, [model.model.name for model in results.models])
    axes.set_xlabel("nats per token; dashed: the margin")
    return _png(figure, axes)


def _figure(rows: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.6 + 0.42 * rows), layout="constrained", dpi=130)
    axes = figure.subplots()
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label_rows(axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_label(name, number) for number, name in enumerate(names)])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _label(name: str, number: int) -> str:
    """The name, or its number in the table where the picture's font may not have its script."""
    return name if name.isascii() else f"no. {number + 1}"


def _png(figure, axes) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()
