"""Who is behind, from what the ranks' watchdogs posted."""

from megatron_sky.trainer.watchdog import hang_message


def test_the_rank_that_did_least():
    message = hang_message({0: ("forward and backward", 40), 1: ("read data", 37)}, 2, 31.0)
    assert "rank 1 fell behind in 'read data'" in message and "rank 0" not in message


def test_a_rank_that_does_not_answer():
    assert "rank 1, 2 does not answer" in hang_message({0: ("agree", 3)}, 3, 31.0)


def test_nobody_is_behind():
    assert "no rank is behind" in hang_message({0: ("agree", 3), 1: ("agree", 3)}, 2, 31.0)
