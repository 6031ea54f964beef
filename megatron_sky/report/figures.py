"""The report's pictures: which curves and marks each of them holds, for one run and for several overlaid."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from megatron_sky.report.content import LegendEntry, Line, Picture
from megatron_sky.report.drawing import (
    COLOURS,
    INK,
    LINE_STYLES,
    PALE,
    STYLE,
    Curve,
    Marks,
    cut_start,
    draw_level,
    draw_lines,
    draw_marks,
    draw_noisy,
    has_finite,
    new_figure,
    to_svg,
)
from megatron_sky.report.run import ReferenceLoss, RunData, Stretch, compared_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Quantity:
    """A field of the training records that has a picture of its own."""

    field: str
    file_name: str
    title: str
    label: str
    noisy: bool = True
    from_zero: bool = True


_LOSS = _Quantity("lm_loss", "train_loss", "Training loss", "loss, nats per token", from_zero=False)
_OTHERS = (
    _Quantity("lr", "lr", "Learning rate", "learning rate", noisy=False),
    _Quantity("grad_norm", "grad_norm", "Gradient norm", "L2 norm before clipping"),
    _Quantity("tokens_per_second", "tokens_per_second", "Throughput", "tokens per second, all ranks"),
)


def draw_run(run: RunData) -> list[Picture]:
    """The pictures of one run that it has data for."""
    marks, steps = _marks(run), len(run.metrics.train)
    quantity = replace(_LOSS, label=f"loss, nats per {run.loss_unit}")
    with _style():
        pictures = [
            _quantity(quantity, _by_session(run), _marks(run, named=False), steps=steps, entropy=run.unigram_entropy),
            _all_sets(run, marks),
            _mixture(run),
            *(_quantity(shown, [_curve(run, shown.field)], marks, steps=steps) for shown in _OTHERS),
        ]
    return [picture for picture in pictures if picture is not None]


def draw_references(run: RunData) -> list[Picture]:
    """For each validation set that other models' losses are known of: the run's loss among them."""
    marks = _marks(run)
    named = [domain.name for domain in run.domains if any(domain.name == other.set for other in run.references)]
    with _style():
        pictures = [
            _one_set(number, name, _own_curves(run, name), run.references, marks, _LOSS.label)
            for number, name in enumerate(named, 1)
        ]
    return [picture for picture in pictures if picture is not None]


def draw_comparison(runs: Sequence[RunData]) -> list[Picture]:
    """Each quantity of training, the runs laid over each other in colours."""
    marks, steps = _common_marks(runs), max(len(run.metrics.train) for run in runs)
    with _style():
        pictures = [_quantity(shown, _overlaid(runs, shown.field), marks, steps=steps) for shown in (_LOSS, *_OTHERS)]
    return [picture for picture in pictures if picture is not None]


def draw_compared_sets(runs: Sequence[RunData]) -> list[Picture]:
    """Each validation set, the runs laid over each other, among the other models' losses that a run knows."""
    names = list(dict.fromkeys(domain.name for run in runs for domain in run.domains))
    known = {(reference.model, reference.set): reference for run in runs for reference in run.references}
    marks = _common_marks(runs)
    with _style():
        pictures = [
            _compared_set(number, name, runs, list(known.values()), marks) for number, name in enumerate(names, 1)
        ]
    return [picture for picture in pictures if picture is not None]


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _curve(run: RunData, field: str, name: str = "", number: int = 0) -> Curve:
    train = run.metrics.train
    return Curve(name, [at.consumed_tokens for at in train], [getattr(at, field) for at in train], number)


def _overlaid(runs: Sequence[RunData], field: str) -> list[Curve]:
    return [_curve(run, field, run.name, number) for number, run in enumerate(runs)]


def _by_session(run: RunData) -> list[Curve]:
    """The training loss cut at the bounds of sessions; whole where the run has none."""
    return [
        Curve(session.name, [at.consumed_tokens for at in train], [at.lm_loss for at in train], number)
        for number, (session, train) in enumerate(run.train_by_session)
    ]


def _marks(run: RunData, named: bool = True) -> Marks:
    names = [session.name for session, _ in run.train_by_session]
    return Marks(run.resume_tokens, run.session_bounds, names if named else ())


def _common_marks(runs: Sequence[RunData]) -> Marks:
    """The bounds of sessions where all runs have the same."""
    every = [_marks(run) for run in runs]
    same = all((history.bounds, history.sessions) == (every[0].bounds, every[0].sessions) for history in every)
    return Marks((), every[0].bounds, every[0].sessions) if same else Marks()


def _quantity(
    quantity: _Quantity, curves: Sequence[Curve], marks: Marks, *, steps: int, entropy: float | None = None
) -> Picture | None:
    """`steps`: of the longest run, whose fiftieth part is the width of the means."""
    shown = [curve for curve in curves if has_finite(curve.y)]
    if not shown:
        return None
    figure, axes = new_figure(quantity.label)
    legend = draw_noisy(axes, shown, steps // 50) if quantity.noisy else draw_lines(axes, shown, width=1.4)
    if quantity.from_zero:
        axes.set_ylim(bottom=0)
    elif shown[0].name:
        cut_start(axes, shown)
    if entropy is not None:
        legend.append(_entropy_line(axes, entropy))
    legend += draw_marks(axes, marks)
    svg = to_svg(figure, quantity.file_name)
    return Picture(quantity.file_name, quantity.title, f"{quantity.title} over consumed tokens", svg, legend)


def _entropy_line(axes: "Axes", entropy: float) -> LegendEntry:
    meaning = "unigram entropy of the training corpus"
    if not axes.get_autoscaley_on() and entropy > axes.get_ylim()[1]:
        return LegendEntry(f"{meaning}: {entropy:.2f}, above the picture", INK, "dashed")
    return draw_level(axes, entropy, "unigram entropy", meaning)


def _all_sets(run: RunData, marks: Marks) -> Picture | None:
    curves = [_set_curve(run, domain.name, "lm_loss", domain.name, number) for number, domain in enumerate(run.domains)]
    if not any(has_finite(curve.y) for curve in curves):
        return None
    figure, axes = new_figure(f"loss, nats per {run.loss_unit}")
    legend = draw_lines(axes, curves)
    if run.sessions:
        cut_start(axes, curves)
    legend += draw_marks(axes, marks)
    svg = to_svg(figure, "validation")
    return Picture("validation", "Validation loss by domain", "Loss of each validation set", svg, legend)


def _one_set(
    number: int, name: str, curves: Sequence[Curve], references: Sequence[ReferenceLoss], marks: Marks, label: str
) -> Picture | None:
    """The curves of one set, and a line for each model whose loss on it is known, the highest first in the legend."""
    if not any(has_finite(curve.y) for curve in curves):
        return None
    figure, axes = new_figure(label)
    legend = draw_lines(axes, curves)
    models = list(dict.fromkeys(line.model for line in references))
    own = sorted((line for line in references if line.set == name), key=lambda reference: -reference.lm_loss)
    legend += [_reference_line(axes, reference, len(curves) + models.index(reference.model)) for reference in own]
    cut_start(axes, curves, [reference.lm_loss for reference in own])
    legend += draw_marks(axes, marks)
    file_name = f"validation_{number}"
    return Picture(file_name, name, f"Loss of the validation set {name}", to_svg(figure, file_name), legend)


def _reference_line(axes: "Axes", reference: ReferenceLoss, number: int) -> LegendEntry:
    colour = COLOURS[number % len(COLOURS)]
    line: Line = "dotted" if number // len(COLOURS) % 2 == 1 else "dashed"
    axes.axhline(reference.lm_loss, color=colour, linestyle=LINE_STYLES[line], linewidth=1.0)
    return LegendEntry(f"{reference.model} {reference.lm_loss:.3f}", colour, line)


def _own_curves(run: RunData, name: str) -> list[Curve]:
    """The run's loss on a set, and its normalised loss first where it has one."""
    own = _set_curve(run, name, "lm_loss", "this run")
    normalised = _set_curve(run, name, "normalised_loss", "this run, per reference token")
    if not normalised.y:
        return [own]
    return [normalised, replace(own, name="this run, per own token", number=1)]


def _set_curve(run: RunData, set_name: str, field: str, name: str, number: int = 0) -> Curve:
    records = [at for at in run.metrics.validation if at.set == set_name and getattr(at, field) is not None]
    return Curve(name, [at.consumed_tokens for at in records], [getattr(at, field) for at in records], number)


def _compared_set(
    number: int, name: str, runs: Sequence[RunData], references: Sequence[ReferenceLoss], marks: Marks
) -> Picture | None:
    field = compared_loss(runs, name)
    curves = [_set_curve(run, name, field, run.name, place) for place, run in enumerate(runs)]
    curves = [curve for curve in curves if curve.y]
    label = "loss, nats per reference token" if field == "normalised_loss" else _LOSS.label
    return _one_set(number, name, curves, references, marks, label)


def _mixture(run: RunData) -> Picture | None:
    """The planned shares as areas over each other: a ramp is a slope, a hand-over a step."""
    plan = run.mixture
    if not plan:
        return None
    figure, axes = new_figure("share of the tokens")
    names = list(dict.fromkeys(name for stretch in plan for name, ends in stretch.shares.items() if any(ends)))
    colours = [_area_colour(number) for number in range(len(names))]
    x = [token for stretch in plan for token in (stretch.first_token, stretch.end_token)]
    y = [[share for stretch in plan for share in stretch.shares.get(name, (0.0, 0.0))] for name in names]
    axes.grid(False)
    axes.stackplot(x, y, colors=colours, linewidth=0, zorder=0.4)  # below the marks
    axes.set_ylim(0, 1)
    axes.set_xlim(x[0], x[-1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    legend = [LegendEntry(name, colour, "area") for name, colour in zip(names, colours, strict=True)]
    done = run.metrics.train[-1].consumed_tokens if run.metrics.train else 0
    if x[0] < done < x[-1]:
        axes.axvline(done, color=INK, linestyle=LINE_STYLES["dashed"], linewidth=1.2)
        legend.append(LegendEntry("trained so far", INK, "dashed"))
    legend += draw_marks(axes, _planned_marks(plan))
    return Picture(
        "mixture", "Mixture", "Planned share of each source over consumed tokens", to_svg(figure, "mixture"), legend
    )


def _planned_marks(plan: Sequence[Stretch]) -> Marks:
    """Where the plan goes from one session to the next."""
    begins = [plan[0], *(new for old, new in pairwise(plan) if new.session != old.session)]
    return Marks((), [begin.first_token for begin in begins[1:]], [begin.session for begin in begins])


def _area_colour(number: int) -> str:
    """Full colours, then the pale ones."""
    return (*COLOURS, *PALE)[number % (2 * len(COLOURS))]
