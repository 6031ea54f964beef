"""The book itself: births, deaths, the peak and what it is made of."""

import pytest
import torch

from megatron_sky.planner.rehearsal.ledger import Ledger, Waits
from megatron_sky.planner.rehearsal.result import ACTIVATIONS, COMMUNICATION, LOGITS, UPDATE, WEIGHTS

KIB = 1 << 10


@pytest.fixture
def ledger():
    with Ledger() as ledger, ledger.phase("forward and backward"):
        yield ledger


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.uint8, device="meta")


def test_a_storage_counts_from_birth_to_death_and_once_for_all_its_views(ledger):
    first = empty(KIB)
    view = first[:10].view(2, 5)
    second = empty(1)
    assert ledger.live == KIB + 512, "sizes are rounded up to 512 bytes"
    del first
    assert ledger.live == KIB + 512
    del view, second
    assert ledger.live == 0
    assert ledger.peak == KIB + 512


def test_the_peak_is_told_as_it_was(ledger):
    first, second = empty(4 * KIB), empty(2 * KIB)
    ledger.assign([first], WEIGHTS)
    del second
    third = empty(KIB)
    assert ledger.peak == 6 * KIB
    assert ledger.at_peak == {(WEIGHTS, "empty"): 4 * KIB, (ACTIVATIONS, "empty"): 2 * KIB}
    ledger.restart()
    assert ledger.peak == 5 * KIB
    assert ledger.at_peak == {(WEIGHTS, "empty"): 4 * KIB, (ACTIVATIONS, "empty"): KIB}
    assert third.is_meta


def test_what_a_kernel_makes_on_its_way_takes_no_memory(ledger):
    with ledger.fused("swiglu"):
        on_the_way = empty(64 * KIB)
        result = empty(KIB)
        del on_the_way
    assert ledger.peak == ledger.live == KIB
    assert ledger.at_peak == {(ACTIVATIONS, "swiglu"): KIB}
    assert result.is_meta


def test_parts_follow_width_phase_and_collectives(ledger):
    ledger.vocabulary = 1024
    logits, received = empty(2, 1024), empty(KIB)
    ledger.communicated("all_gather_into_tensor", received, None, [received, logits])
    with ledger.phase("gradient reduction"):
        kept = empty(KIB)
    with ledger.phase("optimizer"):
        passing = empty(KIB)
    assert ledger.parts() == {LOGITS: 2 * KIB, COMMUNICATION: KIB, ACTIVATIONS: KIB, UPDATE: KIB}
    assert ledger.traffic["forward and backward", "all_gather_into_tensor", None] == 1
    assert ledger.traffic_bytes["forward and backward", "all_gather_into_tensor", None] == KIB
    assert kept.is_meta and passing.is_meta


def test_a_wait_is_allowed_between_computing_alone(ledger):
    number = torch.ones(2, device="meta")
    for wait in (lambda: number.sum().item(), lambda: bool(number.sum() > 0), number.tolist, number.cpu):
        with pytest.raises(Waits, match="while it computes"):
            wait()
    with pytest.raises(Waits):
        torch.empty(2).copy_(number)
    with ledger.phase("optimizer"):
        assert number.sum().item() == 1.0
        assert bool(number.sum() > 0) is True
        assert number.tolist() == [1.0, 1.0]
        assert number.cpu().tolist() == [1.0, 1.0]
        assert torch.empty(2).copy_(number).tolist() == [1.0, 1.0]
    assert sum(ledger.waited.values()) == 5, "those outside computing are counted"


def test_what_was_forgotten_dies_unseen(ledger):
    old = empty(KIB)
    ledger.forget()
    new = empty(2 * KIB)
    del old
    assert ledger.live == 2 * KIB
    assert new.is_meta
