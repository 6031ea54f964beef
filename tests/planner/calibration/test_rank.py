"""Ranks that measure, each kind at few sizes; the processes of their own are `command`'s."""

from megatron_sky.planner.measured import KINDS, read_measured
from tests.planner.calibration import workers


def test_two_ranks_measure_every_kind_together(ranks):
    table, other = ranks(2, workers.measure_few_sizes)
    assert table["seconds"] == other["seconds"], "the ranks' mean"
    assert set(table["seconds"]) == set(KINDS)
    measured, problems = read_measured([table], "measured")
    assert not problems and measured is not None
    rates = measured.at(2)
    assert rates.ranks == 2 and rates.peak("fp32") > 1e6 and rates.reserve_gib > 0.1
    assert [len(rows["fp32"]) for kind, rows in table["seconds"].items() if kind.startswith("product")] == [2, 2, 2]


def test_ranks_run_a_step_equally_often(ranks):
    """One that ran it once more would wait for the others for ever."""
    one, other = ranks(2, workers.count_runs, (0.0, 0.05))
    assert one == other > 2, "the one that is not timed, and as many as the rank with most wants"
