"""What each picture shows: its curves, lines and areas, taken from the figure before it becomes SVG."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from megatron_sky.monitor.metrics import MetricsWriter, ValidationRecord
from megatron_sky.report import figures
from megatron_sky.report.comparison import named_apart
from megatron_sky.report.drawing import ACCENT, BOUND, COLOURS, PALE
from megatron_sky.report.run import load_run

SESSIONS = [
    ("session", {"step": step, "session": name, "first_token": 1000 * step, "end_token": 1000 * end})
    for step, name, end in ((0, "stage-1a", 60), (60, "stage-1b", 100), (100, "stage-2", 120))
]
MIXTURE = [
    {
        "session": "stage-1a",
        "first_token": 0,
        "end_token": 60_000,
        "shares": {"web": [0.9, 0.9], "code": [0.1, 0.1], "unused": [0.0, 0.0]},
    },
    {"session": "stage-1b", "first_token": 60_000, "end_token": 100_000, "shares": {"web": [1.0, 1.0]}},
    {
        "session": "stage-2",
        "first_token": 100_000,
        "end_token": 140_000,
        "shares": {"web": [0.9, 0.6], "code": [0.1, 0.4]},
    },
]
REFERENCES = [{"model": f"model {n}", "set": "code", "lm_loss": 1.0 + n / 10} for n in range(9)]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every picture drawn, by file name."""
    kept = {}

    def keep(figure, salt):
        kept[salt] = figure.axes[0]
        return b""

    monkeypatch.setattr(figures, "to_svg", keep)
    return kept


@pytest.fixture
def staged(tmp_path, write_run):
    data = {"references": [*REFERENCES, {"model": "model 0", "set": "web", "lm_loss": 3.5}], "mixture": MIXTURE}
    losses = [9 / step for step in range(1, 121)]
    return load_run(
        write_run(tmp_path / "run", losses=losses, sets=("code", "web"), events=[("data", data), *SESSIONS])
    )


def lines(axes):
    """(colour, x, y) of each line."""
    return [(to_hex(each.get_color()), list(each.get_xdata()), list(each.get_ydata())) for each in axes.lines]


def test_training_loss_is_coloured_by_session(drawn, staged):
    picture = figures.draw_run(staged)[0]
    found = lines(drawn["train_loss"])
    raw, means, bounds = found[:3], found[3:6], found[6:]
    assert [colour for colour, _, _ in raw] == list(PALE[:3])
    assert [colour for colour, _, _ in means] == list(COLOURS[:3])
    assert [(x[0], x[-1]) for _, x, _ in means] == [(1000, 60_000), (61_000, 100_000), (101_000, 120_000)]
    assert raw[0][2][:2] == [9.0, 4.5]
    assert [(colour, x[0]) for colour, x, _ in bounds] == [(BOUND, 60_000), (BOUND, 100_000)]
    names = [each.name for each in picture.legend]
    assert names == ["stage-1a", "stage-1b", "stage-2", "each step", "mean over 3 steps", "session bounds"]


def test_other_curves_show_the_bounds_of_sessions(drawn, staged):
    pictures = {each.file_name: each for each in figures.draw_run(staged)}
    for name in ("lr", "grad_norm", "tokens_per_second", "validation"):
        bounds = [x[0] for colour, x, _ in lines(drawn[name]) if colour == BOUND]
        assert bounds == [60_000, 100_000], name
        assert pictures[name].legend[-1].name == "session bounds: stage-1a | stage-1b | stage-2"


def test_steps_before_the_first_session_told_keep_a_curve_of_their_own(drawn, tmp_path, write_run):
    late = ("session", {"step": 2, "session": "late", "first_token": 2000, "end_token": 9000})
    run = load_run(write_run(tmp_path, losses=(4.0, 3.0, 2.0), events=[late]))
    picture = figures.draw_run(run)[0]
    assert [(colour, x) for colour, x, _ in lines(drawn["train_loss"])] == [
        (COLOURS[0], [1000, 2000]),
        (COLOURS[1], [3000]),
        (BOUND, [2000, 2000]),
    ]
    assert [each.name for each in picture.legend] == ["before late", "late", "session bounds"]


def test_a_session_of_one_step_is_a_dot(drawn, tmp_path, write_run):
    figures.draw_run(load_run(write_run(tmp_path, losses=[2.0] * 101, events=SESSIONS)))
    *_, last, _, _ = drawn["train_loss"].lines
    assert list(last.get_xdata()) == [101_000] and last.get_marker() == "o"


def test_a_run_without_sessions_has_one_curve(drawn, tmp_path, write_run):
    picture = figures.draw_run(load_run(write_run(tmp_path)))[0]
    assert lines(drawn["train_loss"]) == [(ACCENT, [1000, 2000, 3000], [4.0, 3.0, 2.0])]
    assert [each.name for each in picture.legend] == ["each step"]


def test_validation_has_a_curve_for_each_set(drawn, tmp_path, write_run):
    sets = [f"set {number}" for number in range(10)]
    picture = figures.draw_run(load_run(write_run(tmp_path, sets=sets)))[1]
    found = lines(drawn["validation"])
    assert len(found) == 10 and all((x, y) == ([0, 3000], [9.0, 6.0]) for _, x, y in found)
    assert [(each.name, each.line) for each in picture.legend[7:9]] == [("set 7", "solid"), ("set 8", "dashed")]


def test_the_mixture_is_drawn_as_areas_with_ramps_and_steps(drawn, staged):
    picture = figures.draw_run(staged)[2]
    axes = drawn["mixture"]
    web, code = axes.collections
    (top,) = web.get_paths()
    edge = {tuple(point) for point in np.round(top.vertices, 6)}
    assert {(0, 0.9), (60_000, 0.9), (60_000, 1.0), (100_000, 1.0), (100_000, 0.9), (140_000, 0.6)} <= edge
    (above,) = code.get_paths()
    assert {(140_000, 0.6), (140_000, 1.0)} <= {tuple(point) for point in np.round(above.vertices, 6)}
    areas = [each.name for each in picture.legend if each.line == "area"]
    assert areas == ["web", "code"]  # not the one that has no share anywhere
    marks = [x[0] for _, x, _ in lines(axes)]
    assert marks == [120_000, 60_000, 100_000]  # trained so far, and the sessions' bounds
    assert min(each.get_zorder() for each in axes.lines) > max(each.get_zorder() for each in axes.collections)
    assert axes.get_xlim() == (0, 140_000) and axes.get_ylim() == (0, 1)


def test_sources_beyond_the_full_colours_are_pale(drawn, tmp_path, write_run):
    shares = {f"source {number}": [0.1, 0.1] for number in range(10)}
    data = {"mixture": [{"session": "", "first_token": 0, "end_token": 3000, "shares": shares}]}
    picture = figures.draw_run(load_run(write_run(tmp_path, events=[("data", data)])))[2]
    assert [each.colour for each in picture.legend] == [*COLOURS, *PALE[:2]]
    assert lines(drawn["mixture"]) == []  # it has come to its end, in one session


def test_reference_lines_by_set(drawn, staged):
    code, web = figures.draw_references(staged)
    assert (code.title, web.title) == ("code", "web")
    own, *others = lines(drawn["validation_1"])
    assert own == (ACCENT, [0, 120_000], [9.0, -111.0])
    assert [y[0] for _, _, y in others[:9]] == pytest.approx([1.0 + n / 10 for n in range(8, -1, -1)])
    assert [each.name for each in code.legend[:3]] == ["this run", "model 8 1.800", "model 7 1.700"]
    assert [each.line for each in code.legend[1:4]] == ["dotted", "dotted", "dashed"]  # a second round of colours
    same = [each.colour for each in (*code.legend, *web.legend) if each.name.startswith("model 0 ")]
    assert len(same) == 2 and len(set(same)) == 1


def test_no_reference_no_picture(drawn, tmp_path, write_run):
    assert figures.draw_references(load_run(write_run(tmp_path))) == [] and drawn == {}


def validate(run_dir, name, normalised, step=1):
    with MetricsWriter(run_dir, tensorboard=False, wandb=None, config={}) as metrics:
        metrics.validation(
            ValidationRecord(
                step=step,
                consumed_tokens=1000 * step,
                set=name,
                lm_loss=3.0,
                tokens=64,
                seconds=0.1,
                normalised_loss=normalised,
            )
        )


def test_the_normalised_loss_is_drawn_beside_references(drawn, tmp_path, write_run):
    data = {"references": [{"model": "other", "set": "code", "lm_loss": 2.0}]}
    validate(write_run(tmp_path, sets=(), events=[("data", data)]), "code", 3.5)
    (picture,) = figures.draw_references(load_run(tmp_path))
    assert [(colour, y[0]) for colour, _, y in lines(drawn["validation_1"])] == [
        (COLOURS[0], 3.5),
        (COLOURS[1], 3.0),
        (COLOURS[2], 2.0),
    ]
    assert [each.name for each in picture.legend] == [
        "this run, per reference token",
        "this run, per own token",
        "other 2.000",
    ]


def compared(tmp_path, write_run, first, second):
    folders = [write_run(tmp_path / name, **run) for name, run in (("a", first), ("b", second))]
    return named_apart([load_run(each) for each in folders], folders)


def test_several_runs_are_overlaid(drawn, tmp_path, write_run):
    runs = compared(tmp_path, write_run, {}, {"losses": (5.0, 1.0)})
    pictures = figures.draw_comparison(runs)
    assert [each.file_name for each in pictures] == ["train_loss", "lr", "grad_norm", "tokens_per_second"]
    assert lines(drawn["train_loss"]) == [
        (COLOURS[0], [1000, 2000, 3000], [4.0, 3.0, 2.0]),
        (COLOURS[1], [1000, 2000], [5.0, 1.0]),
    ]
    assert all([entry.name for entry in each.legend] == ["a", "b"] for each in pictures)


def test_overlaid_curves_are_smoothed_alike(drawn, tmp_path, write_run):
    runs = compared(tmp_path, write_run, {"losses": [2.0] * 300}, {"losses": [3.0] * 20})
    legend = figures.draw_comparison(runs)[0].legend
    assert [each.name for each in legend] == ["a", "b", "each step", "mean over 7 steps"]
    assert len(drawn["train_loss"].lines) == 4


def test_a_run_without_a_finite_loss_is_left_out_of_that_picture(drawn, tmp_path, write_run):
    runs = compared(tmp_path, write_run, {"losses": (math.nan,)}, {})
    assert [each.name for each in figures.draw_comparison(runs)[0].legend] == ["b"]
    assert lines(drawn["train_loss"])[0][0] == COLOURS[1]  # its colour is that of the other pictures


@pytest.mark.parametrize(("second", "bounds"), [(SESSIONS, 2), (SESSIONS[:2], 0), ([], 0)])
def test_bounds_are_shown_where_all_runs_share_them(drawn, tmp_path, write_run, second, bounds):
    losses = [1.0] * 120
    runs = compared(tmp_path, write_run, {"losses": losses, "events": SESSIONS}, {"losses": losses, "events": second})
    figures.draw_comparison(runs)
    assert sum(colour == BOUND for colour, _, _ in lines(drawn["lr"])) == bounds


def test_sets_of_several_runs(drawn, tmp_path, write_run):
    runs = compared(tmp_path, write_run, {"sets": ("code", "web")}, {"sets": ("web", "papers"), "losses": (1.0,)})
    pictures = figures.draw_compared_sets(runs)
    assert [each.title for each in pictures] == ["code", "web", "papers"]
    assert lines(drawn["validation_2"]) == [(COLOURS[0], [0, 3000], [9.0, 6.0]), (COLOURS[1], [0, 1000], [9.0, 8.0])]
    assert [each.name for each in pictures[2].legend] == ["b"]


@pytest.mark.parametrize(("second", "value", "label"), [(4.0, 4.0, "reference token"), (None, 3.0, "per token")])
def test_runs_are_compared_by_normalised_loss_where_all_have_it(drawn, tmp_path, write_run, second, value, label):
    runs = []
    for name, normalised in (("a", 3.5), ("b", second)):
        validate(write_run(tmp_path / name, sets=()), "code", normalised)
        runs.append(load_run(tmp_path / name))
    figures.draw_compared_sets(runs)
    assert lines(drawn["validation_1"])[1][2] == [value] and label in drawn["validation_1"].get_ylabel()


def test_the_fall_at_the_start_is_cut_where_sessions_are_told_apart(drawn, tmp_path, write_run):
    losses = [10.0, 9.0, 8.0, *(2.0 + 1 / step for step in range(1, 118))]
    data = ("data", {"unigram_entropy": 7.5})
    picture = figures.draw_run(load_run(write_run(tmp_path / "staged", losses=losses, events=[data, *SESSIONS])))[0]
    low, high = drawn["train_loss"].get_ylim()
    assert 1.9 < low < 2.01 and 2.2 < high < 2.6  # from the 6,950th token on it is below 2.25
    assert "start cut off" in drawn["train_loss"].get_ylabel()
    assert any("7.50, above the picture" in each.name for each in picture.legend)
    figures.draw_run(load_run(write_run(tmp_path / "plain", losses=losses, events=[data])))
    assert drawn["train_loss"].get_ylim()[1] > 9


@pytest.mark.parametrize(
    "losses",
    [[10.0, *[2.0] * 19], [10.0, *[2.0] * 199], [4.0 - step / 100 for step in range(200)], [3.0] * 200],
    ids=["few points", "flat", "an even fall", "constant"],
)
def test_other_curves_are_shown_whole(drawn, tmp_path, write_run, losses):
    runs = compared(tmp_path, write_run, {"losses": losses}, {"losses": losses})
    figures.draw_comparison(runs)
    assert drawn["train_loss"].get_ylim()[1] >= losses[0] and "cut" not in drawn["train_loss"].get_ylabel()


def test_a_spike_after_the_start_and_other_models_stay_in_sight(drawn, tmp_path, write_run):
    losses = [10.0, *[2.0 + 1 / step for step in range(1, 100)], 5.0, *[2.0] * 99]
    runs = compared(tmp_path, write_run, {"losses": losses}, {"losses": losses})
    figures.draw_comparison(runs)
    assert 5.0 < drawn["train_loss"].get_ylim()[1] < 6.0
