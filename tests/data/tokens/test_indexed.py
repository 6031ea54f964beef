import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.tokens.indexed import IndexedTokens, IndexedWriter, bin_path, idx_path, token_dtype
from megatron_sky.errors import DataError
from tests.data.helpers import megatron_datasets, write_pair

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [1, 2]]


def write_with_megatron(prefix, documents, dtype):
    import torch

    indexed = megatron_datasets("indexed_dataset")
    builder = indexed.IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for document, lengths in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), lengths)
    builder.finalize(str(idx_path(prefix)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_bytes_equal_megatrons(tmp_path, dtype):
    documents = [([1, 2, 3], [3]), ([4, 5, 6, 7, 8], [2, 3]), ([9], [1])]
    write_with_megatron(tmp_path / "theirs", documents, dtype)
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for tokens, lengths in documents:
            writer.add_document(np.array(tokens), lengths)
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "theirs").read_bytes()


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


def test_many_documents_at_once_and_pairs_give_the_same_bytes(tmp_path):
    one = write_pair(tmp_path / "one", DOCUMENTS)
    with IndexedWriter(tmp_path / "two", np.uint16) as writer:
        writer.add_documents(np.concatenate(DOCUMENTS), np.array([len(d) for d in DOCUMENTS]))
    first, second = write_pair(tmp_path / "x", DOCUMENTS[:1]), write_pair(tmp_path / "y", DOCUMENTS[1:])
    with IndexedWriter(tmp_path / "three", np.uint16) as writer:
        for prefix in (first, second):
            with IndexedTokens(prefix) as source:
                writer.add_pair(source)
    for other in ("two", "three"):
        assert bin_path(tmp_path / other).read_bytes() == bin_path(one).read_bytes()
        assert idx_path(tmp_path / other).read_bytes() == idx_path(one).read_bytes()


def test_a_block_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_document(np.array([1]))
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_nothing_is_there_before_the_block_ends(tmp_path):
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_document(np.array([1]))
        assert not bin_path(tmp_path / "a").exists() and not idx_path(tmp_path / "a").exists()
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


def test_an_unwritable_place_is_named(tmp_path):
    with pytest.raises(DataError, match="absent"), IndexedWriter(tmp_path / "absent" / "a", np.uint16):
        pass


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
