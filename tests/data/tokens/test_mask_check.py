"""Each rule of a mask file is broken once, and told with its byte."""

import pytest

from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.mask import mask_path, pack_header
from megatron_sky.data.tokens.mask_check import MaskTotals, check_mask
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError
from tests.data.helpers import write_pair

GOOD = [[0, 1, 1], [0, 0, 1, 2, 2], [0, 1, 1, 1, 1, 1, 2, 2, 2]]


def packed(prefix, samples, row_length=8):
    write_pair(prefix, [[7] * len(sample) for sample in samples])
    flags = bytes(flag for sample in samples for flag in sample)
    mask_path(prefix).write_bytes(pack_header(row_length, len(flags)) + flags)
    return prefix


def test_a_good_one(tmp_path):
    assert verify(packed(tmp_path / "a", GOOD)).mask == MaskTotals(8, 2, 4, 8, 5)


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ([[0, 1, 1], [0, 0, 1, 2, 3], GOOD[2]], r"byte 39 \(token 7\): 3 is none of"),
        ([[0, 1, 1, 1], [0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1, 2, 2]], "sample 1 begins in one row"),
        ([[0, 1, 1], [1, 0, 1, 2, 2], GOOD[2]], r"byte 35 .*sample 1 does not begin with context"),
        ([[0, 0, 0], *GOOD[1:]], "sample 0 holds no answer"),
        ([[0, 1, 2], *GOOD[1:]], "sample 0 ends with padding within its row"),
        ([GOOD[0], [0, 2, 1, 2, 2], GOOD[2]], "sample 1 has padding before its end"),
    ],
)
def test_each_rule(tmp_path, samples, told):
    with IndexedTokens(packed(tmp_path / "a", samples)) as pair, pytest.raises(DataError, match=told):
        check_mask(pair, None)


def test_a_pair_of_sentences_is_none(tmp_path):
    import numpy as np

    from megatron_sky.data.tokens.writer import IndexedWriter

    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_document(np.zeros(9, np.uint16), [4, 5])
    mask_path(tmp_path / "a").write_bytes(pack_header(8, 9) + bytes(9))
    with IndexedTokens(tmp_path / "a") as pair, pytest.raises(DataError, match="one sequence each"):
        check_mask(pair, None)
