"""Tensors read in pieces: every row once, in order, and the hash and the count of numbers that are not finite."""

import numpy as np
import pytest
import xxhash

from megatron_sky.checkpoint.reader.lazy import LazyTensor, filled
from megatron_sky.convert import pieces
from megatron_sky.convert.pieces import piece_of, read_pieces


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pieces, "_BLOCK", 16)


def values(*shape: int) -> np.ndarray:
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    numbers.flat[3] = np.inf
    return numbers.view(np.uint32)


def in_parts(bits: np.ndarray) -> LazyTensor:
    def fill(target: np.ndarray, row: int) -> None:
        target[...] = bits[row : row + len(target)]

    return filled("F32", bits.shape, fill, "here")


@pytest.mark.parametrize("lazily", [in_parts, lambda bits: LazyTensor("F32", bits.shape, lambda: bits, "here")])
def test_pieces_are_the_tensor_and_zeros_for_the_rows_that_it_lacks(lazily):
    big, small = values(10, 3), values(5)
    got: dict[str, list] = {"big": [], "small": []}
    for piece in read_pieces([("big", lazily(big), 13), ("small", lazily(small), 5)], 4 * 12):
        assert piece.xxh3 == xxhash.xxh3_128_digest(piece.bits)
        assert piece.first == sum(len(part) for part, _ in got[piece.name])
        got[piece.name].append((piece.bits.copy(), piece.not_finite))
    assert [len(part) for part, _ in got["big"]] == [4, 4, 4, 1]
    assert np.array_equal(np.concatenate([part for part, _ in got["big"]]), np.pad(big, ((0, 3), (0, 0))))
    assert [count for _, count in got["big"]] == [1, 0, 0, 0]
    (whole,) = got["small"]
    assert np.array_equal(whole[0], small) and whole[1] == 1


def test_an_array_is_a_piece_as_it_is():
    turned = values(4, 6).T
    piece = piece_of("w", 0, turned, "F32")
    assert np.array_equal(piece.bits, turned) and piece.not_finite == 1
    assert piece.xxh3 == xxhash.xxh3_128_digest(np.ascontiguousarray(turned))
