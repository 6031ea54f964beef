"""Which samples each rank's micro batches hold: every sample once a step, in any layout."""

import itertools
from types import SimpleNamespace

import pytest

from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.trainer.batches import training_requests, validation_requests
from megatron_sky.trainer.state import TrainState


def context(dp_rank: int = 0, **sizes: int) -> SimpleNamespace:
    return SimpleNamespace(layout=Layout(**sizes), place=Coordinates(0, 0, dp_rank, 0))


def first_steps(recipe, state: TrainState, dp_size: int, steps: int) -> list[list[int]]:
    """The samples of each step, all data-parallel ranks' together, in order."""
    train = recipe("train.global_batch_size=8", "train.micro_batch_size=2").train
    per_rank = 8 // (2 * dp_size)
    ranks = [
        itertools.islice(
            training_requests(train, context=context(rank, dp_size=dp_size), seq_length=32, state=state),
            steps * per_rank,
        )
        for rank in range(dp_size)
    ]
    batches = list(zip(*ranks, strict=True))
    return [
        [number for batch in batches[step * per_rank : (step + 1) * per_rank] for part in batch for number in part]
        for step in range(steps)
    ]


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_a_step_takes_the_same_samples_in_any_layout(dp_size, recipe):
    assert first_steps(recipe, TrainState(), dp_size, 3) == [list(range(8 * step, 8 * step + 8)) for step in range(3)]


def test_samples_that_were_stepped_over_do_not_come_again(recipe):
    state = TrainState(consumed_samples=8, skipped=[(10, 14)])
    assert first_steps(recipe, state, 2, 1) == [[8, 9, 14, 15, 16, 17, 18, 19]]


def test_what_changes_in_the_state_later_changes_nothing(recipe):
    state = TrainState()
    train = recipe("train.micro_batch_size=8").train
    requests = training_requests(train, context=context(), seq_length=32, state=state)
    next(requests)
    state.skip([8, 9])
    assert next(requests) == list(range(8, 16))


@pytest.mark.parametrize(
    ("sequences", "sizes", "count"),
    [(6, {}, 3), (7, {}, 4), (1, {}, 1), (0, {}, 0), (9, {"dp_size": 2}, 3), (5, {"pp_size": 2, "vpp_size": 2}, 4)],
)
def test_validation_has_round_numbers_of_micro_batches(sequences, sizes, count):
    dp_size = sizes.get("dp_size", 1)
    parts = [validation_requests(sequences, 2, context(rank, **sizes)) for rank in range(dp_size)]
    assert [len(part) for part in parts] == [count] * dp_size
    numbers = sorted(number for part in parts for batch in part for number in batch)
    assert numbers == list(range(2 * dp_size * count)) and len(numbers) >= sequences
