"""Meeting: all come and agree, or every rank is told who is missing or different."""

import threading

import pytest

from megatron_sky.distributed.launch import RankInfo
from megatron_sky.distributed.rendezvous import disagreement, meet
from megatron_sky.errors import NodeError, RunError, SkyError
from tests.ranks import _free_port


def meet_together(facts: list[dict], world_size: int, timeout_seconds: float = 30) -> list[SkyError | None]:
    """Each of len(facts) ranks' error, None where it met the others."""
    port, told = _free_port(), [None] * len(facts)
    everyone = threading.Barrier(len(facts))

    def rank(number: int) -> None:
        info = RankInfo(number, world_size, number, world_size, "127.0.0.1", port)
        store = None
        try:
            store = meet(info, facts[number], timeout_seconds=timeout_seconds, warn=print)
        except SkyError as error:
            told[number] = error
        everyone.wait()
        del store  # held until all have read their answer

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_all_agree():
    assert meet_together([{"torch": "2.13"}] * 3, 3) == [None, None, None]


def test_a_missing_rank_is_named_to_all():
    for error in meet_together([{}, {}], 3, timeout_seconds=1.0):
        assert type(error) is NodeError and "1 of 3 ranks did not arrive" in str(error)
        assert str(error).split("seconds): ")[1].startswith("2")


def test_a_rank_that_differs_is_named_to_all():
    for error in meet_together([{"torch": "2.13"}, {"torch": "2.12"}], 2):
        assert type(error) is RunError and "rank 1: torch = '2.12', rank 0 has '2.13'" in str(error)


def test_a_store_that_can_not_be_reached_is_a_nodes_fault():
    with pytest.raises(NodeError, match="rank 1 can't reach the job's store"):
        meet(RankInfo(1, 2, 1, 2, "127.0.0.1", _free_port()), {}, timeout_seconds=1.0, warn=print)


def test_disagreement_in_words():
    assert disagreement([{"a": 1}, {"a": 1}]) == ""
    assert "and 2 more" in disagreement([{str(i): 0 for i in range(10)}, {str(i): 1 for i in range(10)}])
