"""The harness's requests as ours: tokens, limits and stops, whatever lm-eval asks."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import itertools

from megatron_sky.errors import CheckpointError, ConfigError, DataError
from megatron_sky.evaluate.harness import HarnessModel
from megatron_sky.generation.sampling import Sampling
from tests.evaluate.test_scoring import Pretence
from tests.tokenizer.test_coder import coder


def model(context: int = 16, losses=None, **fields) -> HarnessModel:
    pretence = Pretence()
    if losses is not None:
        pretence.losses = losses
    return HarnessModel(pretence, coder(**fields), context=context, batch_tokens=64, gather=lambda part: [part])


def test_tokens_and_what_goes_before():
    assert model().tok_encode("ab") == [97, 98] and model(adds_bos=True).tok_encode("a") == [1, 97]
    assert model(adds_bos=True).tok_encode("a", add_special_tokens=False) == [97]
    assert model(bos=None).tok_encode("a", add_special_tokens=True) == [97]
    assert model().prefix_token_id == 2 and model().eot_token_id == 2 and model(eod=None).eot_token_id is None
    with pytest.raises(DataError, match="neither a begin nor an end token"):
        _ = model(bos=None, eod=None).prefix_token_id


def test_an_answers_loss_is_that_of_its_own_tokens():
    ((loss, greedy),) = model()._loglikelihood_tokens([(("x", "y"), [10, 11], [20, 22])])
    assert loss == pytest.approx(-(20 + 0.011 + 22 + 0.020)) and greedy
    ((_, greedy),) = model()._loglikelihood_tokens([(("x", "y"), [10], [20, 21])])
    assert not greedy


def test_a_long_context_is_cut_on_the_left():
    span = model(context=4)._span(("", ""), list(range(10)), [50, 51])
    assert span.tokens.tolist() == [7, 8, 9, 50, 51] and span.scored == 2
    assert model(context=4)._span(("", ""), [], [50, 51, 52, 53]).scored == 3


@pytest.mark.parametrize("after", [[], [1] * 5])
def test_an_answer_that_the_context_does_not_hold(after):
    with pytest.raises(DataError, match=r"the answer 'yes' has \d tokens; it needs 1 to 4"):
        model(context=4)._span(("", "yes"), [1], after)


def test_a_whole_text_is_scored_by_windows():
    request = SimpleNamespace(args=("abcdefg",))
    (total,) = model(context=3).loglikelihood_rolling([request])
    ids = [2, *map(ord, "abcdefg")]
    assert total == pytest.approx(-sum(after + before / 1000 for before, after in itertools.pairwise(ids)))


def test_losses_that_are_not_finite_choose_no_answer():
    def broken(tokens, places, targets):
        return targets.float() * float("nan"), targets == 0

    with pytest.raises(CheckpointError, match="1 of 1 losses are not finite"):
        model(losses=broken)._loglikelihood_tokens([(("", ""), [1], [2])])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Sampling(8)),
        ({"until": "\n", "max_gen_toks": 3}, Sampling(3, stop=("\n",))),
        (
            {"until": ["a", "", "b"], "max_tokens": "4", "do_sample": True, "temperature": 0.7, "top_p": 0.9},
            Sampling(4, 0.7, top_p=0.9, stop=("a", "b")),
        ),
        ({"do_sample": False, "temperature": 0.7, "num_beams": 2}, Sampling(8, num_beams=2)),
        ({"until": None, "temperature": None}, Sampling(8)),
        ({"max_gen_toks": 2, "max_new_tokens": 5}, Sampling(2)),
    ],
)
def test_how_a_text_is_continued(given, expected):
    kept = dict(given)
    assert model()._sampling(given) == expected and given == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [({"watermark": 3}, "not known here: watermark=3"), ({"max_gen_toks": 16}, "less than the context")],
)
def test_what_is_not_known_or_does_not_fit(given, message):
    with pytest.raises(ConfigError, match=message):
        model()._sampling(given)


def test_a_batch_has_one_kind_of_options_and_stays_in_the_context():
    short, long = Sampling(3), Sampling(6)
    prompts = [[1] * 10, [1] * 2, [1] * 10, [1] * 4]
    batches = model()._batches(prompts, [short, long, short, short])
    assert sorted(map(sorted, batches)) == [[0, 2, 3], [1]]


def test_the_model_is_asked_in_batches_of_like_length():
    pretence = model()
    pretence._loglikelihood_tokens([(("", ""), [1] * n, [2]) for n in (1, 9, 2, 10)])
    assert np.prod(pretence._model.shapes, axis=1).max() <= 64
