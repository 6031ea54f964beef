"""An index that leaves out, repeats or reorders what the tokens' file holds: refused, and rewritten by a merge."""

import os

import numpy as np
import pytest

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.sampling.mixture import SessionMixture, open_plan
from megatron_sky.data.tokens.index_check import check_index
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.tokens.inspection import overview
from megatron_sky.data.tokens.merge import merge
from megatron_sky.data.tokens.meta import check_source
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError
from tests.data.helpers import megatron_datasets, write_other_index, write_pair

DOCUMENTS = [list(range(10 * number, 10 * number + 3 + number)) for number in range(8)]
STARTS = np.cumsum([0, *map(len, DOCUMENTS)]).tolist()
WHOLE = [(start, len(document)) for start, document in zip(STARTS, DOCUMENTS, strict=False)]
OTHER_ORDERS = {
    "without the first": WHOLE[1:],
    "without one": WHOLE[:3] + WHOLE[4:],
    "without the last": WHOLE[:-1],
    "reversed": WHOLE[::-1],
    "two changed round": [WHOLE[1], WHOLE[0], *WHOLE[2:]],
    "one twice": [*WHOLE[:4], WHOLE[3], *WHOLE[4:]],
    "overlapping": [(0, 5), (2, 6), *WHOLE[2:]],
    "cut": [(start, length - 1) for start, length in WHOLE],
}
IMPOSSIBLE = {
    "beyond the end": [*WHOLE[:-1], (WHOLE[-1][0], WHOLE[-1][1] + 1)],
    "far beyond": [(1000, 3), *WHOLE[1:]],
    "before the begin": [(-4, 3), *WHOLE[1:]],
    "a negative length": [(0, -3), *WHOLE[1:]],
}


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path / "a", DOCUMENTS)


def test_an_index_from_front_to_back_is_taken(pair):
    write_other_index(pair, WHOLE)
    with IndexedTokens(pair) as tokens:
        assert check_index(tokens) == 0
    assert check_source(pair, vocab_size=100) is None


@pytest.mark.parametrize("order", OTHER_ORDERS)
def test_any_other_is_refused_and_merge_writes_the_pair_it_describes(pair, order, tmp_path):
    write_other_index(pair, OTHER_ORDERS[order])
    with pytest.raises(DataError, match=r"data merge .* --out NEW"):
        check_source(pair, vocab_size=100)
    with pytest.raises(DataError, match=r"data merge .* --out NEW"):
        verify(pair)
    merge([pair], tmp_path / "new")
    theirs = megatron_datasets("indexed_dataset").IndexedDataset(str(pair))
    with IndexedTokens(tmp_path / "new") as ours:
        documents = [ours.document(number).tolist() for number in range(ours.num_documents)]
    assert documents == [theirs[number].tolist() for number in range(len(theirs))]
    assert verify(tmp_path / "new").num_tokens == sum(map(len, documents)) == overview(pair).num_tokens
    assert check_source(tmp_path / "new", vocab_size=100) is None


@pytest.mark.parametrize("order", IMPOSSIBLE)
def test_what_no_file_can_hold_is_refused_everywhere(pair, order, tmp_path):
    write_other_index(pair, IMPOSSIBLE[order])
    for use in (lambda: check_source(pair, vocab_size=100), lambda: merge([pair], tmp_path / "new")):
        with pytest.raises(DataError, match=r"a\.(idx|bin)"):
            use()
    assert not bin_path(tmp_path / "new").exists()


def test_a_plan_of_such_a_pair_is_refused(pair):
    write_other_index(pair, WHOLE[1:])
    config = DataConfig(train=({"name": "a", "path": str(pair)},))
    with pytest.raises(DataError, match="sequence 0 begins at byte 6 by its pointer, at 0"):
        open_plan(config, seq_length=4, sessions=[SessionMixture(0, 5)])


def test_bounds_that_fall_are_refused(pair, tmp_path):
    with open(idx_path(pair), "r+b") as file:
        file.seek(-8 * 3, os.SEEK_END)
        file.write(np.int64(1).tobytes())
    for use in (lambda: check_source(pair, vocab_size=100), lambda: merge([pair], tmp_path / "new")):
        with pytest.raises(DataError, match="ends at sequence 1, before its own begin"):
            use()


def test_an_index_that_was_changed_after_its_meta_file_is_read_again(text_corpus, tmp_path):
    prefix = tmp_path / "a"
    (meta,) = tokenize_files(
        [text_corpus.files["test"]["code"]], prefix, text_corpus.tokenizer, TokenizeOptions(fast=False)
    )
    with IndexedTokens(prefix) as tokens:
        starts, lengths = (tokens.pointers() // tokens.dtype.itemsize).tolist(), tokens.lengths().tolist()
    assert check_source(prefix, vocab_size=600) == meta
    write_other_index(prefix, list(zip(starts, lengths, strict=True))[::-1])  # of the same size
    with pytest.raises(DataError, match="reorders"):
        check_source(prefix, vocab_size=600)
