"""Ids of many texts at once: the library's own, whichever way they come."""

import numpy as np
import pytest

from megatron_sky.errors import DataError, MissingDependency
from megatron_sky.tokenizer import encoder
from megatron_sky.tokenizer.encoder import BatchEncoder

TEXTS = ["one two", "", "</s> inside", "今天", "x" * 100]


def split(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("parse_special", [False, True])
def test_every_text_has_its_ids(fast, parse_special, text_corpus):
    tokenizer = text_corpus.tokenizer
    flat, lengths = BatchEncoder(tokenizer, fast=fast, parse_special=parse_special)(TEXTS)
    assert split(flat, lengths) == [tokenizer.encode(text, parse_special=parse_special) for text in TEXTS]


def test_no_texts(text_corpus):
    flat, lengths = BatchEncoder(text_corpus.tokenizer)([])
    assert len(flat) == len(lengths) == 0


def test_other_ids_from_the_fast_library_stop_the_work(text_corpus, monkeypatch):
    batch = BatchEncoder(text_corpus.tokenizer, check_every=2)
    if not batch.is_fast:
        pytest.skip("gigatoken is not installed")

    def wrong(library, texts):
        return np.arange(len(texts), dtype=np.uint32) + 100, np.ones(len(texts), np.int64)

    monkeypatch.setattr(encoder, "_encode_fast", wrong)
    with pytest.raises(DataError, match="give different ids for the text that begins 'one two'"):
        batch(["one two", "three"])


def test_without_the_fast_library(text_corpus, monkeypatch):
    def absent(needed_for: str):
        raise MissingDependency("gigatoken", needed_for, "pip install gigatoken")

    monkeypatch.setattr(encoder, "gigatoken_for", absent)
    assert not BatchEncoder(text_corpus.tokenizer).is_fast
    with pytest.raises(MissingDependency, match="the fast encoder needs the package `gigatoken`"):
        BatchEncoder(text_corpus.tokenizer, fast=True)
