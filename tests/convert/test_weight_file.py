"""A weight file, read back while it is written: what stands in it is what was meant, or an error says where."""

import errno

import numpy as np
import pytest
import xxhash

from megatron_sky.convert import weight_file
from megatron_sky.convert.weight_file import Expected, WeightFile, cant_write
from megatron_sky.errors import CheckpointError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(weight_file, "_BLOCK", 16)


def bits(*values: float) -> np.ndarray:
    return np.array(values, np.float32).view(np.uint32)


def test_the_record_is_of_the_file(tmp_path):
    arrays = [bits(*range(9)), bits(*range(20)).reshape(4, 5)]
    with WeightFile(tmp_path / "w") as file:
        assert file.write(b"head") == 4
        for array in arrays:
            begin = file.size
            file.write(array)
            file.verify_written([Expected(begin, array, "F32", "w")])
        record = file.finish()
    content = (tmp_path / "w").read_bytes()
    assert content == b"head" + b"".join(array.tobytes() for array in arrays)
    assert record == {"size": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}


def test_numbers_that_are_not_finite_are_counted_by_tensor(tmp_path):
    with WeightFile(tmp_path / "w") as file:
        for name, array in (("a", bits(1, np.nan, np.inf, *range(9), -np.inf)), ("b", bits(0, 1))):
            begin = file.size
            file.write(array)
            file.verify_written([Expected(begin, array, "F32", name)])
        assert file.finish()["not_finite"] == {"a": 3}


@pytest.mark.parametrize("place", [0, 17, 35])
def test_a_byte_that_differs_is_found(place, tmp_path):
    array = bits(*range(9))
    meant = array.copy()
    meant.view(np.uint8)[place] ^= 1
    with (
        pytest.raises(CheckpointError, match="embedding: read back, differs from what was written"),
        WeightFile(tmp_path / "w") as file,
    ):
        file.write(array)
        file.verify_written([Expected(0, meant, "F32", "embedding")])
        file.finish()


def test_a_file_that_shrank_is_found(tmp_path):
    with pytest.raises(CheckpointError, match="the file is truncated"), WeightFile(tmp_path / "w") as file:
        file.write(bits(1, 2, 3))
        (tmp_path / "w").write_bytes(b"")
        file.finish()


def test_an_empty_file(tmp_path):
    with WeightFile(tmp_path / "w") as file:
        file.flush()
        assert file.finish() == {"size": 0, "xxh3": xxhash.xxh3_128_hexdigest(b"")}


def test_a_place_that_can_not_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="none/w"):
        WeightFile(tmp_path / "none" / "w")
    full = str(cant_write(tmp_path / "w", OSError(errno.ENOSPC, "No space left on device")))
    assert "No space left" in full and "fix:" in full
