"""Batches through transformers' generation: each row ends for itself, and the tokens are transformers' own."""

import pytest

pytest.importorskip("transformers")

import torch

from megatron_sky.generation.engine import CANCELLED, LENGTH, STOP, Request, plan_batches
from megatron_sky.generation.sampling import Sampling
from tests.generation.models import engine

GREEDY = Sampling(12)


@pytest.fixture(scope="module")
def llama():
    return engine()


def ids(text: str) -> list[int]:
    return [ord(char) for char in text]


def request(text: str, limit: int = 12, **fields) -> Request:
    return Request(ids(text), limit, **fields)


def reference(engine, text: str, **settings) -> str:
    tokens = engine.model.generate(
        torch.tensor([ids(text)]), suppress_tokens=list(range(300, 304)), pad_token_id=0, eos_token_id=2, **settings
    )
    return "".join(map(chr, tokens[0, len(text) :]))


def test_a_batch_gives_what_transformers_gives_one_by_one(llama):
    texts = ["a", "hello", "The river"]
    answers = llama.generate([request(text) for text in texts], GREEDY)
    for text, answer in zip(texts, answers, strict=True):
        assert answer.text == reference(llama, text, max_new_tokens=12, do_sample=False)
        assert (answer.num_tokens, answer.ended) == (12, LENGTH)
        assert max(map(ord, answer.text)) < 300, "an id that the tokenizer does not know"


def test_beams_are_transformers_own(llama):
    (one, other) = llama.generate([request("hello", 6), request("you", 6)], Sampling(6, num_beams=3))
    assert one.text == reference(llama, "hello", max_new_tokens=6, num_beams=3, do_sample=False)
    assert other.text == reference(llama, "you", max_new_tokens=6, num_beams=3, do_sample=False)
    stop = one.text[2]
    (cut,) = llama.generate([request("hello", 6, stop=(stop,))], Sampling(6, num_beams=3))
    assert stop not in cut.text


def test_each_row_ends_for_itself(llama):
    whole = llama.generate([request("hello")], GREEDY)[0].text
    shown: list[str] = []
    rows = [
        request("hello", on_text=shown.append),
        request("hello", 3),
        request("hello", stop=("never", whole[4:6])),
        request("hello", is_cancelled=lambda: len("".join(shown)) >= 7),
    ]
    answers = llama.generate(rows, GREEDY)
    place = whole.find(whole[4:6])
    assert [answer.text for answer in answers[:3]] == [whole, whole[:3], whole[:place]]
    assert [answer.ended for answer in answers] == [LENGTH, LENGTH, STOP, CANCELLED]
    assert "".join(shown) == whole and len(shown) == 12
    assert whole.startswith(answers[3].text) and len(answers[3].text) < len(whole)


def test_an_end_token_is_no_text():
    whole = engine().generate([request("hello")], GREEDY)[0].text
    end = ord(whole[3])
    (answer,) = engine(ends=(2, end)).generate([request("hello")], GREEDY)
    assert answer.text == whole[: whole.find(chr(end))] and answer.ended == STOP
    assert answer.num_tokens == len(answer.text) + 1


def test_what_is_drawn_follows_from_the_seed(llama):
    def drawn(seed: int) -> str:
        return llama.generate([request("hello")], Sampling(12, 2.0, top_k=50, top_p=0.95, min_p=0.01, seed=seed))[
            0
        ].text

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != llama.generate([request("hello")], GREEDY)[0].text


def test_options_have_the_effect_of_transformers(llama):
    (answer,) = llama.generate([request("aa")], Sampling(12, repetition_penalty=5.0, no_repeat_ngram_size=2))
    expected = reference(
        llama, "aa", max_new_tokens=12, do_sample=False, repetition_penalty=5.0, no_repeat_ngram_size=2
    )
    assert answer.text == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_up_to_the_contexts_end(kind):
    """A learned position beyond the last is an error: no row may go on so long that another leaves the context."""
    small = engine(context=16, kind=kind)
    rows = [Request([97] * length, 16 - length) for length in (1, 15, 8, 8)]
    batches = plan_batches(rows, context=16, batch_size=8)
    assert sorted(map(len, batches)) == [1, 1, 2]
    answers = [answer for batch in batches for answer in small.generate([rows[number] for number in batch], GREEDY)]
    assert sum(answer.num_tokens for answer in answers if answer.ended == LENGTH) <= 15 + 1 + 8 + 8


def test_batches_are_of_like_length_and_of_the_size_asked_for():
    rows = [Request([1] * length, 4) for length in (5, 1, 9, 3, 7)]
    assert plan_batches(rows, context=100, batch_size=2) == [[2, 4], [0, 3], [1]]
