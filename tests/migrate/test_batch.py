"""Tokens by Megatron-LM's counts, while the batch grows too."""

import pytest

from megatron_sky.migrate.arguments import Arguments, Untold
from megatron_sky.migrate.batch import Batch, budget, decay_tokens, even_steps, span, stages_of, tokens_of

BASE = "--global-batch-size 32 --seq-length 100"


def args(words: str = "") -> Arguments:
    return Arguments(f"{BASE} {words}".split())


def of(function, words: str):
    given = args(words)
    return function(given, Batch(given))


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("--train-samples 10", 1000),
        ("--train-iters 10", 32_000),
        ("--train-samples 10 --train-iters 10", 1000),
        ("--train-iters 0", 0),
    ],
)
def test_the_budget(words, tokens):
    assert of(budget, words) == tokens


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "neither --train-iters nor --train-samples"),
        ("--train-iters ${N}", "is reckoned from"),
        ("--train-iters many", "is no number"),
        ("--train-iters 5 --rampup-batch-size 8 8", "wants three values"),
    ],
)
def test_what_the_arguments_leave_open(words, why):
    with pytest.raises(Untold, match=why):
        of(budget, words)


def test_a_batch_that_grows():
    stages = of(stages_of, "--rampup-batch-size 8 8 300")
    assert stages == [(0, 8), (10_000, 16), (20_000, 24), (30_000, 32)]
    assert of(stages_of, "") == [(0, 32)]


@pytest.mark.parametrize("iterations", [0, 1, 5, 13, 20, 21, 30, 100])
def test_iterations_while_it_grows_are_counted_one_by_one(iterations):
    given = args("--rampup-batch-size 8 8 300")
    stages, tokens = stages_of(given, Batch(given)), 0
    for _ in range(iterations):
        tokens += 100 * [size for begin, size in stages if begin <= tokens][-1]
    assert tokens_of(iterations, stages, Batch(given)) == tokens


@pytest.mark.parametrize(
    ("schedule", "stages"),
    [
        ("0:8 1k:16 2K:24 3k:32", [(0, 8), (1000, 16), (2000, 24), (3000, 32)]),
        ("0:16,1M:32", [(0, 16), (1_000_000, 32)]),
        ("0:8 1k:16 5k:32", None),
        ("0:8 1k:16", None),
    ],
)
def test_a_schedule_of_even_steps(schedule, stages):
    assert of(even_steps, f"--step-batch-size-schedule {schedule}") == stages


def test_a_schedule_that_is_none():
    with pytest.raises(Untold, match="is no list of TOKENS:SIZE"):
        of(even_steps, "--step-batch-size-schedule 0:8 soon:16")


def test_spans_of_a_schedule():
    given = args("--lr-decay-iters 5 --train-iters 10 --lr-warmup-samples 7")
    assert decay_tokens(given, Batch(given)) == 16_000
    assert span(given, Batch(given), "lr-warmup-iters", "lr-warmup-samples") == 700
    assert of(decay_tokens, "--train-iters 10") == 32_000 and of(decay_tokens, "--train-samples 10") == 1000
