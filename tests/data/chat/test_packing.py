"""Samples into rows: none lost, none cut, and few tokens of padding."""

import random

import numpy as np

from megatron_sky.data.chat import packing
from megatron_sky.data.chat.packing import Packer
from megatron_sky.data.chat.samples import Sample
from megatron_sky.data.tokens.mask import PADDING

ROW = 64


def samples(count, seed=1):
    draw = random.Random(seed)
    for number in range(count):
        tokens = np.full(draw.choice([draw.randint(1, 20), draw.randint(1, ROW)]), number + 1)
        yield Sample(tokens, np.zeros(len(tokens), np.uint8))


def rows_of(given):
    packer, rows = Packer(ROW, pad_id=0), []
    for sample in given:
        if (row := packer.add(sample)) is not None:
            rows.append(row)
    return rows + list(packer.rest())


def test_every_sample_is_whole_in_one_row(monkeypatch):
    monkeypatch.setattr(packing, "OPEN_ROWS", 8)
    given = list(samples(500))
    rows = rows_of(given)
    seen = {}
    for row in rows:
        assert sum(len(sample.tokens) for sample in row) == ROW
        for sample in row:
            real = sample.tokens[sample.mask != PADDING]
            seen[int(real[0])] = len(real)
            assert (sample.tokens[sample.mask == PADDING] == 0).all()
        assert not any((sample.mask == PADDING).any() for sample in row[:-1])
    assert seen == {int(sample.tokens[0]): len(sample.tokens) for sample in given}
    filled = sum(len(sample.tokens) for sample in given)
    assert filled / (len(rows) * ROW) > 0.95


def test_the_same_samples_give_the_same_rows():
    def tokens(rows):
        return [[sample.tokens.tolist() for sample in row] for row in rows]

    assert tokens(rows_of(samples(200))) == tokens(rows_of(samples(200)))
