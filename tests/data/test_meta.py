import dataclasses
import json
import math

import numpy as np
import pytest

from megatron_sky.data.indexed import bin_path
from megatron_sky.data.meta import check_source, entropy, hash_blocks, hash_file, meta_path, read_meta
from megatron_sky.data.tokenize import tokenize_jsonl
from megatron_sky.errors import DataError

from .helpers import write_pair


@pytest.fixture
def pair(corpus, tmp_path):
    prefix = tmp_path / "stem"
    return prefix, tokenize_jsonl([corpus.files["test"]["stem"]], prefix, corpus.tokenizer)


def test_round_trip(pair):
    prefix, meta = pair
    assert read_meta(prefix) == meta
    assert meta.documents.read == meta.documents.written + meta.documents.empty + meta.documents.rejected


def test_a_pair_without_meta_is_allowed(tmp_path):
    assert read_meta(write_pair(tmp_path / "a", [[1]])) is None
    assert check_source(tmp_path / "a", vocab_size=1) is None


def test_check_source_accepts_what_agrees(pair, corpus):
    prefix, meta = pair
    assert check_source(prefix, vocab_size=600, tokenizer_sha256=corpus.tokenizer.sha256) == meta


def test_a_small_vocabulary_is_named_with_both_numbers(pair):
    prefix, meta = pair
    with pytest.raises(DataError, match=rf"token id {meta.max_token_id}.*vocab_size = {meta.max_token_id}"):
        check_source(prefix, vocab_size=meta.max_token_id)


def test_another_tokenizer_is_named(pair):
    with pytest.raises(DataError, match="made with the tokenizer"):
        check_source(pair[0], vocab_size=600, tokenizer_sha256="0" * 64)


@pytest.mark.parametrize("name", ["num_tokens", "num_documents", "bin_size", "idx_size", "num_sequences"])
def test_contradicting_files_are_named(pair, name):
    prefix, meta = pair
    dataclasses.replace(meta, **{name: getattr(meta, name) + 1}).write(prefix)
    with pytest.raises(DataError, match=name):
        check_source(prefix, vocab_size=600)


def test_unreadable_meta_files_are_named(pair):
    prefix, _ = pair
    for text, message in (
        ("{", "can't be read"),
        ("[]", "format_version"),
        ('{"format_version": 99}', "is 99"),
        ('{"format_version": 2}', "not a complete meta file"),
    ):
        meta_path(prefix).write_text(text)
        with pytest.raises(DataError, match=message):
            read_meta(prefix)


def test_unknown_fields_of_a_later_writer_are_passed_over(pair):
    prefix, meta = pair
    given = json.loads(meta_path(prefix).read_text())
    meta_path(prefix).write_text(json.dumps(given | {"later": 1}))
    assert read_meta(prefix) == meta


def test_entropy():
    assert entropy(np.array([1, 1, 0, 1, 1])) == pytest.approx(math.log(4))
    assert entropy(np.array([7])) == entropy(np.array([0])) == 0


def test_hash_blocks_cover_the_file(pair, tmp_path):
    import xxhash

    path = bin_path(pair[0])
    whole = path.read_bytes()
    expected = tuple(xxhash.xxh3_128_hexdigest(whole[start : start + 1000]) for start in range(0, len(whole), 1000))
    assert hash_blocks(path, 1000) == expected
    assert hash_file(path) == xxhash.xxh3_128_hexdigest(whole)
