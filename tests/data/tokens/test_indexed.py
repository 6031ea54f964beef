import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path, token_dtype
from megatron_sky.data.tokens.writer import IndexedWriter
from megatron_sky.errors import DataError
from tests.data.helpers import megatron_datasets, write_pair, write_with_megatron

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [1, 2]]


def test_megatron_reads_ours_and_we_read_theirs(tmp_path):
    write_pair(tmp_path / "ours", DOCUMENTS)
    theirs = megatron_datasets("indexed_dataset").IndexedDataset(str(tmp_path / "ours"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    write_with_megatron(tmp_path / "theirs", [(d, [len(d)]) for d in DOCUMENTS], np.int32)
    with IndexedTokens(tmp_path / "theirs") as tokens:
        assert [tokens.document(i).tolist() for i in range(tokens.num_documents)] == DOCUMENTS
        assert tokens.dtype == np.int32


def test_token_dtype_is_megatrons_choice():
    choose = megatron_datasets("indexed_dataset").DType.optimal_dtype
    for vocab_size in (100, 65_499, 65_500, 65_536, 200_000):
        assert token_dtype(vocab_size) == np.dtype(choose(vocab_size))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65_535), min_size=0, max_size=9), min_size=1, max_size=12), st.data())
def test_flat_reads_equal_the_concatenation(tmp_path_factory, documents, data):
    flat = [token for document in documents for token in document]
    prefix = write_pair(tmp_path_factory.mktemp("flat") / "a", [*documents, [7]])
    flat.append(7)
    with IndexedTokens(prefix) as tokens:
        assert tokens.num_tokens == len(flat) and tokens.num_documents == len(documents) + 1
        start = data.draw(st.integers(0, len(flat)))
        length = data.draw(st.integers(0, len(flat) - start))
        assert tokens.read(start, length).tolist() == flat[start : start + length]


def test_document_at_finds_the_document_of_a_token(tmp_path):
    with IndexedTokens(write_pair(tmp_path / "a", DOCUMENTS)) as tokens:
        expected = [number for number, document in enumerate(DOCUMENTS) for _ in document]
        assert [tokens.document_at(offset) for offset in range(tokens.num_tokens)] == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: bin_path(p).unlink(), "does not exist"),
        (lambda p: idx_path(p).unlink(), "does not exist"),
        (lambda p: idx_path(p).write_bytes(b""), "is empty"),
        (lambda p: idx_path(p).write_bytes(idx_path(p).read_bytes()[:20]), "cut short"),
        (lambda p: idx_path(p).write_bytes(idx_path(p).read_bytes()[:-8]), "header tells of 4 sequences"),
        (lambda p: idx_path(p).write_bytes(b"X" + idx_path(p).read_bytes()[1:]), "no Megatron index"),
        (lambda p: idx_path(p).write_bytes(_patched(p, 9, b"\x02")), "version 2"),
        (lambda p: idx_path(p).write_bytes(_patched(p, 17, b"\x63")), "number format 99"),
        (lambda p: bin_path(p).write_bytes(bin_path(p).read_bytes()[:-2]), "has 18 bytes"),
        (lambda p: bin_path(p).write_bytes(b""), "has 0 bytes"),
        (lambda p: bin_path(p).write_bytes(bin_path(p).read_bytes() + b"\0\0"), "describes 20"),
    ],
)
def test_damaged_pairs_are_named(tmp_path, damage, message):
    prefix = write_pair(tmp_path / "a", DOCUMENTS)
    damage(prefix)
    with pytest.raises(DataError, match=message) as caught:
        IndexedTokens(prefix)
    assert str(tmp_path) in str(caught.value) and "fix" in str(caught.value)


def _patched(prefix, at, new):
    whole = bytearray(idx_path(prefix).read_bytes())
    whole[at : at + len(new)] = new
    return bytes(whole)


def test_an_empty_pair_is_named(tmp_path):
    with IndexedWriter(tmp_path / "a", np.uint16):
        pass
    with pytest.raises(DataError, match="holds no token"):
        IndexedTokens(tmp_path / "a")


def test_a_file_that_changes_under_the_reader_is_named(tmp_path):
    prefix = write_pair(tmp_path / "a", DOCUMENTS)
    with IndexedTokens(prefix) as tokens:
        os.truncate(bin_path(prefix), 6)
        with pytest.raises(DataError, match="changed while in use"):
            tokens.read(0, 2)
        with pytest.raises(DataError, match=r"a\.bin.*cut short"):
            tokens.read(5, 2)


def test_opening_takes_no_memory_for_a_large_index(tmp_path):
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_documents(np.zeros(2_000_000, np.uint16), np.full(1_000_000, 2))
    tracemalloc.start()
    with IndexedTokens(tmp_path / "a") as tokens:
        assert tokens.document_at(1_234_567) == 617_283
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_documents_begin_where_the_index_says(tmp_path):
    documents = [[5, 6, 7], [], [8], [2, 2], [], [9, 10, 11, 12], [1, 2], []]
    prefix = write_pair(tmp_path / "a", documents)
    begins = np.cumsum([0, *map(len, documents)])
    with IndexedTokens(prefix) as tokens:
        for offset in range(tokens.num_tokens):
            for length in range(1, tokens.num_tokens - offset + 1):
                expected = [at > 0 and offset + at in begins for at in range(length)]
                assert tokens.document_starts(offset, length).tolist() == expected


def test_many_short_documents_begin_where_the_index_says(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_sky.data.tokens.indexed._STARTS_AT_ONCE", 3)
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        for number in range(100):  # of one or two sequences, every third without any
            lengths = [[2], [1, 3], []][number % 3]
            writer.add_document(np.zeros(sum(lengths), np.uint16), lengths)
    with IndexedTokens(tmp_path / "a") as tokens:
        expected = [at for at in range(1, 100) if at % 6 in (0, 2)]
        assert np.flatnonzero(tokens.document_starts(0, 100)).tolist() == expected
