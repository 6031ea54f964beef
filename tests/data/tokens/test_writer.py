import os

import numpy as np
import pytest

from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.tokens.writer import IndexedWriter
from megatron_sky.errors import DataError
from tests.data.helpers import write_pair, write_with_megatron

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [1, 2]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_bytes_equal_megatrons(tmp_path, dtype):
    documents = [([1, 2, 3], [3]), ([4, 5, 6, 7, 8], [2, 3]), ([9], [1])]
    write_with_megatron(tmp_path / "theirs", documents, dtype)
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for tokens, lengths in documents:
            writer.add_document(np.array(tokens), lengths)
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "theirs").read_bytes()


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
