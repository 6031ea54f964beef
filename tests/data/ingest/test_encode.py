"""One block through a worker: ids, sequences and counts, as the writer takes them."""

import json

import numpy as np
import pytest

from megatron_sky.data.ingest.encode import BlockEncoder, EncodeOptions
from megatron_sky.data.ingest.inputs import Block
from megatron_sky.data.ingest.sentences import learn_punkt
from megatron_sky.data.tokens.indexed import token_dtype
from megatron_sky.errors import DataError


def block_of(tmp_path, *lines: object) -> Block:
    path = tmp_path / "a.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Block(str(path), 0, path.stat().st_size)


def documents(encoded, dtype) -> list[list[list[int]]]:
    """Each document's sequences."""
    tokens, at, result = np.frombuffer(encoded.tokens, dtype), 0, []
    lengths = iter(encoded.lengths)
    for count in encoded.sequences:
        result.append([])
        for length in [next(lengths) for _ in range(count)]:
            result[-1].append(tokens[at : at + length].tolist())
            at += length
    assert at == len(tokens)
    return result


@pytest.mark.parametrize("append_eod", [True, False])
def test_a_document_is_a_sequence(append_eod, text_corpus, tmp_path):
    tokenizer = text_corpus.tokenizer
    block = block_of(tmp_path, {"text": "one two"}, {"text": ""}, {"text": "three"}, "", "{broken")
    encoded = BlockEncoder(tokenizer, EncodeOptions(append_eod=append_eod))(block)
    end = [tokenizer.eod_id] if append_eod else []
    assert documents(encoded.texts[0], token_dtype(tokenizer.vocab_size)) == [
        [tokenizer.encode("one two") + end],
        [],
        [tokenizer.encode("three") + end],
    ]
    assert (encoded.documents, encoded.empty, encoded.blank, encoded.lines) == (3, (1,), 1, 5)
    assert [reject.reason for reject in encoded.rejects] == ["not_json"] and encoded.source_xxh3


def test_the_end_is_behind_the_last_sentence(text_corpus, tmp_path):
    tokenizer, text = text_corpus.tokenizer, "It rains. It pours."
    options = EncodeOptions(split_sentences=True)
    encoded = BlockEncoder(tokenizer, options, learn_punkt([text]))(block_of(tmp_path, {"text": text}))
    (sentences,) = documents(encoded.texts[0], token_dtype(tokenizer.vocab_size))
    assert sentences == [tokenizer.encode("It rains."), [*tokenizer.encode("It pours."), tokenizer.eod_id]]


def test_sentences_given_as_a_list_stay_as_they_are(text_corpus, tmp_path):
    tokenizer = text_corpus.tokenizer
    block = block_of(tmp_path, {"text": ["a b", "c"]}, {"text": "d"})
    encoded = BlockEncoder(tokenizer, EncodeOptions(append_eod=False))(block)
    assert documents(encoded.texts[0], token_dtype(tokenizer.vocab_size)) == [
        [tokenizer.encode("a b"), tokenizer.encode("c")],
        [tokenizer.encode("d")],
    ]


def test_every_key_makes_texts_of_its_own(text_corpus, tmp_path):
    block = block_of(tmp_path, {"q": "one", "a": "two three"}, {"q": "four", "a": ""})
    encoded = BlockEncoder(text_corpus.tokenizer, EncodeOptions(keys=("q", "a")))(block)
    assert len(encoded.texts) == 2 and encoded.empty == (0, 1)


def test_a_file_that_went_away_is_named(text_corpus, tmp_path):
    with pytest.raises((DataError, OSError)) as caught:
        BlockEncoder(text_corpus.tokenizer, EncodeOptions())(Block(str(tmp_path / "gone.jsonl"), 0, 5))
    assert "gone.jsonl" in str(caught.value)
