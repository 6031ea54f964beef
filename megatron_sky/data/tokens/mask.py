"""The mask file of packed samples: `<prefix>.mask`, one byte a token beside a `.bin/.idx` pair.

Such a pair is made of rows of one length, each filled with whole samples (its documents) and padded to its end, so that
the n-th row is the n-th sequence of a run whose `model.seq_length` is that length: the sampling plan, which knows
nothing of samples, never cuts one. One token of padding follows the last row, since a row's last label is the token
after it. Of preference data the samples are pairs: the chosen answer's, and the rejected one's behind it, in one row.
docs/formats.md gives the bytes.
"""

import os
import struct
from pathlib import Path

import numpy as np

from megatron_sky.errors import DataError
from megatron_sky.files import open_handle

MAGIC = b"SKYMASK\x00"
VERSION, PAIRS_VERSION = 1, 2
HEADER = struct.Struct("<8sQQQ")  # magic, version, tokens in a row, tokens
CONTEXT, ANSWER, PADDING, REJECTED = 0, 1, 2, 3
_FIX = "make the pair again with `megatron-sky data chat`, or copy all its files again from one run"


def mask_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.mask")


def pack_header(row_length: int, num_tokens: int, *, pairs: bool = False) -> bytes:
    """The first 32 bytes of a mask file."""
    return HEADER.pack(MAGIC, PAIRS_VERSION if pairs else VERSION, row_length, num_tokens)


class TokenMask:
    """Read access to `<prefix>.mask`; opening takes constant time.

    Attributes:
        row_length: tokens in a row.
        num_tokens: tokens of the pair, which are whole rows and one more.
        holds_pairs: the samples are a chosen answer and a rejected one by turns.

    Raises:
        DataError: the file is missing, no mask file, or of a size that its header contradicts.
    """

    def __init__(self, prefix: str | Path):
        self.path = mask_path(prefix)
        try:
            self._handle = open_handle(self.path)
        except OSError as error:
            raise DataError(f"{self.path} can't be read: {error.strerror}\n  fix: {_FIX}") from error
        try:
            self._read_header()
        except DataError:
            self.close()
            raise

    def _read_header(self) -> None:
        size, head = os.fstat(self._handle).st_size, os.pread(self._handle, HEADER.size, 0)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise DataError(f"{self.path} is no mask file: it begins with {head[:8]!r}, not {MAGIC!r}\n  fix: {_FIX}")
        _, version, self.row_length, self.num_tokens = HEADER.unpack(head)
        if version not in (VERSION, PAIRS_VERSION):
            raise DataError(
                f"{self.path} has mask version {version}; {VERSION} and {PAIRS_VERSION} are known\n  fix: {_FIX}"
            )
        self.holds_pairs = version == PAIRS_VERSION
        if size != HEADER.size + self.num_tokens:
            raise DataError(
                f"{self.path} has {size:,} bytes, but its header tells of {self.num_tokens:,} tokens, which take "
                f"{HEADER.size + self.num_tokens:,}\n  fix: {_FIX}"
            )
        if self.row_length < 2 or self.num_tokens % self.row_length != 1:
            raise DataError(
                f"{self.path}: {self.num_tokens:,} tokens are not rows of {self.row_length:,} and one more\n"
                f"  fix: {_FIX}"
            )

    @property
    def num_rows(self) -> int:
        return self.num_tokens // self.row_length

    def read(self, offset: int, length: int) -> np.ndarray:
        """What tokens `[offset, offset + length)` are: uint8, CONTEXT, ANSWER and so on. Raises DataError."""
        assert offset >= 0 and offset + length <= self.num_tokens, (offset, length, self.num_tokens)
        data = os.pread(self._handle, length, HEADER.size + offset)
        if len(data) != length:
            raise DataError(f"{self.path} has been cut short while in use\n  fix: {_FIX}")
        return np.frombuffer(data, dtype=np.uint8)

    def close(self) -> None:
        handle = self.__dict__.pop("_handle", None)
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.close()


def open_mask(prefix: str | Path, num_tokens: int, *, is_known: bool) -> TokenMask | None:
    """The mask of the pair `prefix` of `num_tokens` tokens; None where it has none.

    `is_known`: its meta file tells of one. Raises DataError where that is missing, or another pair's.
    """
    if not is_known and not mask_path(prefix).exists():
        return None
    mask = TokenMask(prefix)
    if mask.num_tokens != num_tokens:
        mask.close()
        raise DataError(
            f"{mask_path(prefix)} is the mask of {mask.num_tokens:,} tokens, the pair has {num_tokens:,}\n  fix: {_FIX}"
        )
    return mask
