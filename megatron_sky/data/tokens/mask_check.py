"""Whether a mask file describes its pair: every byte of it, and that its rows are rows of whole samples."""

from dataclasses import dataclass

import numpy as np

from megatron_sky.data.tokens.indexed import IndexedTokens, chunks, idx_path
from megatron_sky.data.tokens.mask import ANSWER, CONTEXT, HEADER, PADDING, REJECTED, TokenMask, open_mask
from megatron_sky.data.tokens.meta import MaskRecord, hash_blocks
from megatron_sky.errors import DataError

_SAMPLES_AT_ONCE = 1024


@dataclass(frozen=True)
class MaskTotals:
    """Tokens of a mask file by what they are."""

    row_length: int
    rows: int
    context_tokens: int
    answer_tokens: int
    padding_tokens: int
    rejected_tokens: int = 0


def check_mask(pair: IndexedTokens, record: MaskRecord | None) -> MaskTotals | None:
    """Reads the mask of `pair` through; None where it has none. `record`: what its meta file says of it.

    A sample (document) lies within one row and begins with context; it holds an answer; padding comes last in it and
    ends where the row does, after which the last row has one more token of it. Of pairs, each second sample holds
    the rejected answer instead, in the row of the one before.

    Raises:
        DataError: the first fault, with the byte of the file.
    """
    mask = open_mask(pair.prefix, pair.num_tokens, is_known=record is not None)
    if mask is None:
        return None
    if pair.num_documents != pair.num_sequences:
        raise DataError(f"{idx_path(pair.prefix)}: packed samples are one sequence each, these are several")
    if mask.holds_pairs and pair.num_documents % 2:
        raise DataError(f"{mask.path}: {pair.num_documents:,} samples are no pairs")
    counts, begin, first = np.zeros(4, np.int64), 0, 0
    for lengths in chunks(pair.lengths, pair.num_sequences, size=_SAMPLES_AT_ONCE):
        ends = begin + np.cumsum(lengths, dtype=np.int64)
        flags = mask.read(begin, int(ends[-1]) - begin)
        _check_samples(mask, flags, np.concatenate([[begin], ends[:-1]]), ends, first)
        counts += np.bincount(flags, minlength=4)
        begin, first = int(ends[-1]), first + len(lengths)
    totals = MaskTotals(mask.row_length, mask.num_rows, *counts.tolist())
    if record is not None:
        _check_record(mask, totals, record)
    return totals


def _check_samples(mask: TokenMask, flags: np.ndarray, begins: np.ndarray, ends: np.ndarray, first: int) -> None:
    offset, row = int(begins[0]), mask.row_length
    if (wrong := flags > (REJECTED if mask.holds_pairs else PADDING)).any():
        at, also = int(np.argmax(wrong)), ", 3 (rejected answer)" if mask.holds_pairs else ""
        raise _fault(mask, offset + at, f"{flags[at]} is none of 0 (context), 1 (answer), 2 (padding){also}")
    lasts = np.minimum(ends, mask.num_tokens - 1) - 1  # the last token of all stands behind the last row
    at_begin, places = flags[begins - offset], begins - offset
    ends_in_padding = flags[ends - 1 - offset] == PADDING
    goes_on = (flags[:-1] == PADDING) & (flags[1:] != PADDING)
    goes_on[places[1:] - 1] = False
    is_rejected = mask.holds_pairs & ((first + np.arange(len(begins))) % 2 == 1)
    of_other = np.where(np.repeat(is_rejected, ends - begins), flags == ANSWER, flags == REJECTED)
    is_answer = (flags == ANSWER) | (flags == REJECTED)
    rules = {
        "begins in one row and ends in another": begins // row != lasts // row,
        "does not begin with context": at_begin != CONTEXT,
        "holds no answer": np.add.reduceat(is_answer, places, dtype=np.int64) == 0,
        "holds an answer of the pair's other sample": np.add.reduceat(of_other, places, dtype=np.int64) > 0,
        "is not in the row of its pair's first": is_rejected & (begins % row == 0),
        "ends with padding within its row": ends_in_padding & ((lasts + 1) % row != 0),
        "has padding before its end": np.add.reduceat(np.append(goes_on, False), places, dtype=np.int64) > 0,
    }
    for rule, broken in rules.items():
        if broken.any():
            number = int(np.argmax(broken))
            raise _fault(mask, int(begins[number]), f"sample {first + number:,} {rule}")


def _fault(mask: TokenMask, token: int, what: str) -> DataError:
    return DataError(f"{mask.path}, byte {HEADER.size + token:,} (token {token:,}): {what}")


def _check_record(mask: TokenMask, totals: MaskTotals, record: MaskRecord) -> None:
    if tuple(record.blocks) != hash_blocks(mask.path):
        raise DataError(f"{mask.path}: the content differs from the one that was written (XXH3 in the meta file)")
    for name in ("row_length", "rows", "answer_tokens", "padding_tokens", "rejected_tokens"):
        if getattr(record, name) != getattr(totals, name):
            raise DataError(
                f"{mask.path}: {name} is {getattr(totals, name):,}, the meta file says {getattr(record, name):,}"
            )
