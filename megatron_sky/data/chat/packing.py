"""Samples into rows of one length: best fit over the rows that are open, in bounded memory and always the same way.

A sample goes into the open row that it fills best; where it fits into none, a new row is opened, and of too many open
ones the fullest is closed. The order of rows does not matter: the sampling plan shuffles them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np

from megatron_sky.data.chat.samples import Sample
from megatron_sky.data.tokens.mask import PADDING

OPEN_ROWS = 1024


class Packer:
    """Rows are lists of samples; padding to `row_length` belongs to the last sample of each."""

    def __init__(self, row_length: int, pad_id: int):
        self._row_length, self._pad_id = row_length, pad_id
        self._open: list[tuple[int, int]] = []  # (tokens that are free, number of the row), sorted
        self._rows: dict[int, list[Sample]] = {}
        self._opened = 0

    def add(self, sample: Sample) -> list[Sample] | None:
        """Takes a sample; a row that this closes."""
        size = len(sample.tokens)
        assert 0 < size <= self._row_length, size
        at = bisect_left(self._open, (size, -1))
        if at < len(self._open):
            free, number = self._open.pop(at)
        else:
            free, number = self._row_length, self._opened
            self._rows[number] = []
            self._opened += 1
        self._rows[number].append(sample)
        if free == size:
            return self._close(number)
        insort(self._open, (free - size, number))
        return self._close(self._open.pop(0)[1]) if len(self._open) > OPEN_ROWS else None

    def rest(self) -> Iterator[list[Sample]]:
        """The rows that are open at the end."""
        for _, number in self._open:
            yield self._close(number)
        self._open = []

    def _close(self, number: int) -> list[Sample]:
        row = self._rows.pop(number)
        free = self._row_length - sum(len(sample.tokens) for sample in row)
        return [*row[:-1], padded(row[-1], free, self._pad_id)]


def padded(sample: Sample, count: int, pad_id: int) -> Sample:
    """The sample with `count` tokens of padding behind it."""
    tokens = np.pad(sample.tokens, (0, count), constant_values=pad_id)
    return Sample(tokens, np.pad(sample.mask, (0, count), constant_values=PADDING), sample.cut, sample.first)
