"""Own tokens against another tokenizer's, over exactly the part of a set that is evaluated."""

import pytest

from megatron_sky.data.ingest.tokenize import tokenize_jsonl
from megatron_sky.data.reference import token_ratio
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.tokenizer.train import train_tokenizer
from tests.data.helpers import read_texts


@pytest.fixture(scope="module")
def held_out(text_corpus, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("held_out") / "code"
    tokenize_jsonl([text_corpus.files["test"]["code"]], prefix, text_corpus.tokenizer)
    return IndexedTokens(prefix), read_texts(text_corpus.files["test"]["code"])


def test_its_own_tokenizer_gives_one(held_out, text_corpus):
    file, _ = held_out
    assert token_ratio(file, text_corpus.tokenizer, text_corpus.tokenizer, num_tokens=file.num_tokens) == 1.0


def test_counts_are_those_of_the_texts(held_out, text_corpus, tmp_path):
    file, texts = held_out
    other = train_tokenizer(texts, tmp_path / "other.model", 400)
    theirs = sum(len(other.encode(text)) + 1 for text in texts)
    ratio = token_ratio(file, text_corpus.tokenizer, other, num_tokens=file.num_tokens)
    assert ratio == pytest.approx(file.num_tokens / theirs, rel=1e-12) and ratio != 1.0


def test_a_part_counts_alone(held_out, text_corpus, tmp_path):
    file, texts = held_out
    other = train_tokenizer(texts, tmp_path / "other.model", 400)
    first = file.document(0)
    ratio = token_ratio(file, text_corpus.tokenizer, other, num_tokens=len(first))
    assert ratio == pytest.approx(len(first) / (len(other.encode(texts[0])) + 1))
