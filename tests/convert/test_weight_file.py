"""A weight file, compared on its way to the disk: what goes there is what was read, or an error names the tensor."""

import errno

import numpy as np
import pytest
import xxhash

from megatron_sky import files
from megatron_sky.convert import pieces, weight_file
from megatron_sky.convert.pieces import piece_of
from megatron_sky.convert.weight_file import WeightFile, cant_write
from megatron_sky.errors import CheckpointError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(weight_file, "_BLOCK", 16)
    monkeypatch.setattr(pieces, "_BLOCK", 16)


def bits(*values: float) -> np.ndarray:
    return np.array(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("direct", [True, False])
def test_the_record_is_of_the_file(direct, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_DIRECT_BYTES", 4096)
    if not direct:  # as on a file system that knows no other way than through the cache
        monkeypatch.setattr(files, "_O_DIRECT", 0)
    arrays = [bits(*range(9)), bits(), bits(*range(3000)).reshape(40, 75), bits()]
    with WeightFile(tmp_path / "w") as file:
        assert file.write(b"head") == 4
        begins = [file.write_piece(piece_of("w", 0, array, "F32")) for array in arrays]
        assert begins == [4, 40, 40, 12_040]
        record = file.finish()
    content = (tmp_path / "w").read_bytes()
    assert content == b"head" + b"".join(array.tobytes() for array in arrays)
    assert record == {"size": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}


def test_numbers_that_are_not_finite_are_counted_by_tensor(tmp_path):
    with WeightFile(tmp_path / "w") as file:
        for name, array in (("a", bits(1, np.nan, np.inf, *range(9), -np.inf)), ("b", bits(0, 1))):
            file.write_piece(piece_of(name, 0, array, "F32"))
        assert file.finish()["not_finite"] == {"a": 3}


@pytest.mark.parametrize("place", [0, 17, 35])
def test_a_byte_that_differs_is_found(place, tmp_path):
    piece = piece_of("embedding", 0, bits(*range(9)), "F32")
    piece.bits.view(np.uint8)[place] ^= 1
    with (
        pytest.raises(CheckpointError, match="embedding: on its way to the disk, differs from what was read"),
        WeightFile(tmp_path / "w") as file,
    ):
        file.write_piece(piece)
        file.finish()


def test_a_piece_that_is_not_written_to_its_end_is_found(tmp_path):
    with pytest.raises(CheckpointError, match="the file is truncated"), WeightFile(tmp_path / "w") as file:
        file.write_piece(piece_of("embedding", 0, bits(1, 2, 3), "F32"), b"1234")
        file.finish()


def test_an_empty_file(tmp_path):
    with WeightFile(tmp_path / "w") as file:
        assert file.finish() == {"size": 0, "xxh3": xxhash.xxh3_128_hexdigest(b"")}


def test_a_place_that_can_not_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="none/w"):
        WeightFile(tmp_path / "none" / "w")
    full = str(cant_write(tmp_path / "w", OSError(errno.ENOSPC, "No space left on device")))
    assert "No space left" in full and "fix:" in full
