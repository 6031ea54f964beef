"""Measured rates: read, looked up, refused where a place is wrong."""

import copy

import pytest

from megatron_sky.planner.measured import KINDS, Curve, read_measured
from tests.planner.machine import entry, seconds_of, table


@pytest.fixture(scope="module")
def measured():
    read, problems = read_measured(entry()["measured"], "measured")
    assert not problems
    return read


def test_a_measured_size_takes_what_was_measured_and_others_what_their_terms_say(measured):
    rates = measured.at(1)
    assert rates.seconds("product_forward", "fp32", 512, 512, 512) == pytest.approx(
        seconds_of("product_forward", 512, 512, 512), rel=0.02
    )
    for sizes in ((700, 900, 1100), (8192, 8192, 8192)):
        assert rates.seconds("product_forward", "fp32", *sizes) == pytest.approx(
            seconds_of("product_forward", *sizes), rel=0.02
        )


def test_near_a_size_that_is_off_the_terms_it_counts_and_far_from_it_it_does_not():
    rows = [(float(size), 1e-9 * size) for size in (1 << 10, 1 << 14, 1 << 18, 1 << 22)]
    slow = [*rows, (float(1 << 26), 3e-9 * (1 << 26))]
    curve = Curve(KINDS["update"], slow)
    assert curve.seconds(1 << 26) > 2.3e-9 * (1 << 26)
    assert curve.seconds(1 << 12) < 1.7e-9 * (1 << 12)
    assert all(weight >= 0 for weight in curve.weights)


def test_ranks_that_share_a_machine_have_their_own_table(measured):
    alone, beside = measured.at(1), measured.at(2)
    assert (alone.ranks, beside.ranks, measured.at(7).ranks) == (1, 2, 2)
    sizes = (512, 512, 512)
    assert beside.seconds("product_forward", "fp32", *sizes) == pytest.approx(
        2 * alone.seconds("product_forward", "fp32", *sizes), rel=0.02
    )
    assert beside.peak("fp32") == pytest.approx(alone.peak("fp32") / 2, rel=0.02)


def test_collectives_of_more_ranks_than_were_measured_pass_more_to_each(measured):
    rates = measured.at(2)
    two, four = (rates.collective("all_reduce", "bf16", ranks, 1 << 22) for ranks in (2, 4))
    assert four == pytest.approx(1.5 * two)
    assert rates.collective("send", "fp32", 2, 1 << 22) == pytest.approx(2 * seconds_of("send", 2, 1 << 22), rel=0.05)


def test_every_wrong_place_is_named():
    raw = [table(1), table(1)]
    seconds = copy.deepcopy(raw[1]["seconds"])
    del seconds["loss"]
    seconds |= {"juggling": {"fp32": [[1, 1]]}, "update": {"fp32": [[1, -1]]}, "gradients": {"int8": [[1, 1]]}}
    raw[1] = raw[1] | {"threads": True, "seconds": seconds}
    _, problems = read_measured(raw, "m.yaml: measured")
    said = "\n".join(map(str, problems))
    for part in (
        "measured[1].threads = True: must be a number of at least 0",
        "measured[1].seconds.loss: is missing",
        "measured[1].seconds.juggling: is no kind of operator",
        "measured[1].seconds.update.fp32: must be rows of numbers above 0: parameters, seconds",
        "measured[1].seconds.gradients: must be rows by format",
    ):
        assert part in said
    assert "must be a list of tables" in str(read_measured({}, "measured")[1][0])
    assert "two tables for one number of ranks" in str(read_measured([table(1), table(1)], "measured")[1][0])
    assert "must have ranks, threads" in str(read_measured([3], "measured")[1][0])


def test_what_starting_a_layer_costs_is_what_is_beyond_its_operators(measured):
    layer, micro_batch, step = measured.at(1).overhead("fp32")
    assert min(layer, micro_batch, step) >= 0
