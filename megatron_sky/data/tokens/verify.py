"""Prove a pair, or name the byte at which it goes wrong.

Everything is read once: header and sizes, then the index in pieces (pointers that follow from the lengths, bounds that
never fall), then the tokens in blocks on all cores (hash, id range, end of each document). The first fault is told with
the file and the byte offset; memory does not grow with the pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.data.tokens.index_check import check_index
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, chunks, idx_path
from megatron_sky.data.tokens.mask_check import MaskTotals, check_mask
from megatron_sky.data.tokens.meta import HASH_BLOCK, BrokenMeta, Meta, check_meta, meta_path, read_meta
from megatron_sky.data.tokens.scan import ScannedBlock, TokenScan, scan_tokens
from megatron_sky.errors import DataError
from megatron_sky.files import hash_range
from megatron_sky.tokenizer.kinds import Tokenizer

_ENDS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Verified:
    """A pair that was verified, and what could be verified of it.

    Attributes:
        meta: its meta file, or None where it has none: then nothing was known to compare with.
        scan: hashes of its tokens, and the largest id.
        num_unended: documents that don't end with the end-of-document id (None: the id is not known).
        mask: what its mask file holds, or None where it has none.
    """

    prefix: str
    meta: Meta | None
    num_tokens: int
    num_documents: int
    num_empty: int
    scan: TokenScan
    num_unended: int | None
    mask: MaskTotals | None


def verify(
    prefix: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    without_broken_meta: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Check a pair against itself, its meta file, and a tokenizer.

    Args:
        tokenizer: ids must be below its size, and the meta file must name it.
        without_broken_meta: verify the pair as one that has no meta file where it has a broken one, to be replaced.
        report: called with (bytes done, bytes in all).

    Raises:
        DataError: the first fault, with file and byte offset.
    """
    with IndexedTokens(prefix, allow_empty=True) as pair:
        if pair.dtype.kind not in "iu":
            raise DataError(f"{idx_path(prefix)}: number format {pair.dtype.name} can't hold token ids")
        meta = _read_meta(prefix, without_broken=without_broken_meta)
        if meta is not None:
            check_meta(prefix, meta, pair)
            if tokenizer is not None and meta.tokenizer.sha256 != tokenizer.sha256:
                raise DataError(
                    f"{meta_path(prefix)}: made with tokenizer {meta.tokenizer.name} ({meta.tokenizer.sha256[:12]}), "
                    f"not with {tokenizer.name} ({tokenizer.sha256[:12]})"
                )
        num_empty = check_index(pair)
        checker = _TokenChecker(pair, meta, _limit(meta, tokenizer), _eod(meta, tokenizer), report)
        scan = scan_tokens(bin_path(prefix), pair.dtype, visit=checker, places=checker.ends)
        _check_totals(prefix, meta, scan, checker)
        mask = check_mask(pair, None if meta is None else meta.mask)
        unended, documents = checker.num_unended, pair.num_documents
        return Verified(str(prefix), meta, pair.num_tokens, documents, num_empty, scan, unended, mask)


def _read_meta(prefix: str | Path, *, without_broken: bool) -> Meta | None:
    try:
        return read_meta(prefix)
    except BrokenMeta:
        if not without_broken:
            raise
        return None


def _limit(meta: Meta | None, tokenizer: Tokenizer | None) -> int | None:
    if tokenizer is not None:
        return tokenizer.vocab_size
    return None if meta is None else meta.tokenizer.vocab_size


def _eod(meta: Meta | None, tokenizer: Tokenizer | None) -> int | None:
    if tokenizer is not None:
        return tokenizer.eod_id
    return None if meta is None else meta.tokenizer.eod_id


class _TokenChecker:
    """Called with every block of tokens, in order."""

    def __init__(
        self,
        pair: IndexedTokens,
        meta: Meta | None,
        limit: int | None,
        eod_id: int | None,
        report: Callable[[int, int], None],
    ):
        self._pair, self._meta, self._limit, self._eod_id, self._report = pair, meta, limit, eod_id, report
        self._ends = _document_ends(pair)
        self._pending = np.empty(0, np.int64)
        self._number = 0
        self._num_unended = 0

    @property
    def num_unended(self) -> int | None:
        """See `Verified`."""
        return None if self._eod_id is None else self._num_unended

    def __call__(self, block: ScannedBlock) -> None:
        width = self._pair.dtype.itemsize
        self._check_ids(block, width)
        self._check_hash(block, block.first * width)
        if self._eod_id is not None:
            self._check_ends(block, width)
        self._number += 1
        self._report((block.first + block.length) * width, self._pair.num_tokens * width)

    def ends(self, start: int, stop: int) -> np.ndarray:
        """The last token of each document that ends among tokens `start` to before `stop`; to be asked in order."""
        if self._eod_id is None:
            return np.empty(0, np.int64)
        while len(self._pending) == 0 or self._pending[-1] <= stop:
            more = next(self._ends, None)
            if more is None:
                break
            self._pending = np.concatenate([self._pending, more])
        cut = int(np.searchsorted(self._pending, stop, side="right"))
        here, self._pending = self._pending[:cut] - 1, self._pending[cut:]
        return here

    def _check_ids(self, block: ScannedBlock, width: int) -> None:
        limit = self._limit
        if not block.has_negative and (limit is None or block.max_id < limit):
            return
        path = bin_path(self._pair.prefix)
        tokens = np.fromfile(path, self._pair.dtype, block.length, offset=block.first * width)
        at = int(np.argmax((tokens < 0) | (tokens.astype(np.int64) >= (limit or 1 << 62))))
        raise DataError(
            f"{path}, byte {(block.first + at) * width:,}: token {block.first + at:,} is {tokens[at]}, outside "
            f"[0, {limit})"
        )

    def _check_hash(self, block: ScannedBlock, at: int) -> None:
        hashes = self._meta.bin_blocks if self._meta else ()
        if hashes and (self._number >= len(hashes) or hashes[self._number] != block.xxh3):
            raise DataError(
                f"{bin_path(self._pair.prefix)}, bytes {at:,} to {at + HASH_BLOCK:,}: the content differs from the one "
                f"that was written (XXH3 in {meta_path(self._pair.prefix)})"
            )

    def _check_ends(self, block: ScannedBlock, width: int) -> None:
        wrong = block.ids != self._eod_id
        self._num_unended += int(wrong.sum())
        if self._meta is not None and self._meta.append_eod and wrong.any():
            number = int(np.argmax(wrong))
            raise DataError(
                f"{bin_path(self._pair.prefix)}, byte {block.places[number] * width:,}: the document that ends here "
                f"ends with id {block.ids[number]}, not with the end-of-document id {self._eod_id}"
            )


def _document_ends(pair: IndexedTokens):
    """The token after each document that has any, in pieces."""
    before = 0
    for bounds in chunks(pair.bounds, pair.num_documents, first=1, size=_ENDS_AT_ONCE):
        low, high = before, int(bounds[-1])
        begins = pair.pointers(low, high - low) // pair.dtype.itemsize
        ends = begins + pair.lengths(low, high - low)
        firsts = np.concatenate([[low], bounds[:-1]])
        filled = bounds > firsts
        ends, begins = ends[bounds[filled] - 1 - low], begins[firsts[filled] - low]
        yield ends[ends > begins]
        before = high


def _check_totals(prefix: str | Path, meta: Meta | None, scan: TokenScan, checker: _TokenChecker) -> None:
    if meta is None:
        return
    if len(meta.bin_blocks) != len(scan.blocks):
        raise DataError(f"{meta_path(prefix)}: has {len(meta.bin_blocks)} hashes for {len(scan.blocks)} blocks")
    if meta.idx_xxh3 is not None and meta.idx_xxh3 != hash_range(idx_path(prefix)):
        raise DataError(f"{idx_path(prefix)}: the content differs from the one that was written ({meta_path(prefix)})")
    if meta.max_token_id != scan.max_id:
        raise DataError(f"{meta_path(prefix)}: max_token_id is {meta.max_token_id}, the tokens have {scan.max_id}")
    counts = meta.documents
    if counts.read != counts.written + counts.empty + counts.rejected:
        raise DataError(f"{meta_path(prefix)}: documents read are not those written, empty and rejected: {counts}")
    if (files := meta.files) is not None and files.found != files.read + sum(files.passed_over.values()):
        raise DataError(f"{meta_path(prefix)}: files found are not those read and passed over: {files}")
