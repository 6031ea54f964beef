"""The mask file's bytes, and what is refused for one."""

import struct

import pytest

from megatron_sky.data.tokens.mask import HEADER, TokenMask, mask_path, open_mask, pack_header
from megatron_sky.errors import DataError


def write(prefix, flags, row_length=4):
    mask_path(prefix).write_bytes(pack_header(row_length, len(flags)) + bytes(flags))
    return prefix


def test_the_bytes_are_the_documented_ones(tmp_path):
    prefix = write(tmp_path / "a", [0, 1, 1, 2, 2])
    assert mask_path(prefix).read_bytes() == b"SKYMASK\0" + struct.pack("<QQQ", 1, 4, 5) + b"\0\1\1\2\2"
    assert HEADER.size == 32
    mask = TokenMask(prefix)
    assert (mask.row_length, mask.num_rows, mask.read(1, 3).tolist()) == (4, 1, [1, 1, 2])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no mask file"),
        (b"NOTAMASK" + bytes(40), "is no mask file"),
        (b"SKYMASK\0" + struct.pack("<QQQ", 9, 4, 5) + bytes(5), "version 9"),
        (pack_header(4, 5) + bytes(4), "has 36 bytes"),
        (pack_header(4, 6) + bytes(6), "not rows of 4"),
        (pack_header(0, 1) + bytes(1), "not rows of 0"),
    ],
)
def test_refusals(tmp_path, content, told):
    mask_path(tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=told):
        TokenMask(tmp_path / "a")


def test_missing_and_foreign(tmp_path):
    assert open_mask(tmp_path / "a", 5, is_known=False) is None
    with pytest.raises(DataError, match="can't be read"):
        open_mask(tmp_path / "a", 5, is_known=True)
    with pytest.raises(DataError, match="is the mask of 5 tokens, the pair has 9"):
        open_mask(write(tmp_path / "a", [0, 1, 1, 2, 2]), 9, is_known=False)


def test_cut_short_in_use(tmp_path):
    mask = TokenMask(write(tmp_path / "a", [0, 1, 1, 2, 2]))
    with open(mask_path(tmp_path / "a"), "rb+") as file:
        file.truncate(34)
    with pytest.raises(DataError, match="cut short while in use"):
        mask.read(0, 5)
