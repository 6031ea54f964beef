"""A pair opened for training, and the mark by which its files are known again."""

import pytest

from megatron_sky.data.tokens.sources import fingerprint, fingerprints, open_source
from megatron_sky.errors import DataError
from tests.data.helpers import write_pair

DOCUMENTS = [[1, 2, 3], [4, 5], [6]]


def test_a_pair_without_a_meta_file_is_opened(tmp_path):
    source = open_source(write_pair(tmp_path / "p", DOCUMENTS), vocab_size=10)
    assert source.meta is None and source.tokens.num_tokens == 6


def test_a_pair_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="none"):
        open_source(tmp_path / "none", vocab_size=10)


def test_the_mark_is_the_contents_wherever_they_lie(tmp_path):
    same = [write_pair(tmp_path / name, DOCUMENTS) for name in ("a", "b")]
    other_order = write_pair(tmp_path / "c", DOCUMENTS[::-1])
    other_token = write_pair(tmp_path / "d", [[1, 2, 3], [4, 5], [7]])
    other_bounds = write_pair(tmp_path / "e", [[1, 2], [3, 4, 5], [6]])
    marks = [fingerprint(prefix) for prefix in (*same, other_order, other_token, other_bounds)]
    assert marks[0] == marks[1] and len(set(marks)) == 4


def test_many_at_once_keep_their_names(tmp_path):
    prefixes = {str(number): write_pair(tmp_path / str(number), [[number]]) for number in range(20)}
    assert fingerprints(prefixes) == {name: fingerprint(prefix) for name, prefix in prefixes.items()}
    with pytest.raises(OSError):
        fingerprints({"none": tmp_path / "none"})
    assert fingerprints({}) == {}
