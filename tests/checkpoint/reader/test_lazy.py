"""Tensors that stay on disk: bits in, bits out, joined, widened and compared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.checkpoint.reader.lazy import (
    FORMAT_OF_TORCH,
    ITEM_SIZE,
    TORCH_NAMES,
    LazyTensor,
    as_float32,
    bits_dtype,
    common_format,
    count_not_finite,
    in_file,
    read_ahead,
    read_into,
    same_bits,
    same_bytes,
    same_numbers,
)
from megatron_sky.errors import CheckpointError


def lazy(array: np.ndarray, dtype: str = "F32", place: str = "a") -> LazyTensor:
    return LazyTensor(dtype, array.shape, lambda: array.view(bits_dtype(dtype)), place)


def of_torch(values: list[float], dtype: str) -> LazyTensor:
    import torch

    tensor = torch.tensor(values, dtype=getattr(torch, TORCH_NAMES[dtype]))
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[ITEM_SIZE[dtype]]
    return lazy(tensor.view(integer).numpy(), dtype)


def test_formats_have_torchs_names_and_sizes():
    import torch

    for dtype, name in TORCH_NAMES.items():
        assert getattr(torch, name).itemsize == ITEM_SIZE[dtype] == bits_dtype(dtype).itemsize
        assert FORMAT_OF_TORCH[name] == dtype


def test_a_file_is_read_when_asked(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    path = tmp_path / "t"
    path.write_bytes(b"head" + numbers.tobytes())
    tensor = in_file(path, 4, "F32", (3, 4), "w")
    assert tensor.num_bytes == 48 and tensor.load().view(np.float32).tolist() == numbers.reshape(3, 4).tolist()
    assert tensor.rows(1, 3).load().tolist() == tensor.load()[1:3].tolist() and tensor.rows(0, 3) is tensor
    path.write_bytes(b"head" + numbers.tobytes()[:-1])
    with pytest.raises(CheckpointError, match="ends 1 bytes before tensor w does: the file is truncated"):
        tensor.load()
    path.unlink()
    with pytest.raises(OSError):
        tensor.load()


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_nothing_and_a_scalar_are_read(shape, tmp_path):
    (tmp_path / "t").write_bytes(b"\1\2")
    target = np.empty(shape, np.uint8)
    read_into(tmp_path / "t", 1, target, "it")
    assert target.tolist() == (2 if shape == () else [])


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_side_by_side(axis):
    parts = [np.full((2, 3), n, np.float32) for n in range(3)]
    whole = lazy(parts[0]).joined_with([lazy(part) for part in parts[1:]], axis)
    expected = np.concatenate(parts, axis=axis)
    assert whole.shape == expected.shape and whole.load().view(np.float32).tolist() == expected.tolist()


@pytest.mark.parametrize("other", [np.zeros((3, 3), np.float32), np.zeros(2, np.float32), np.zeros((2, 3), np.float64)])
def test_parts_that_do_not_fit(other):
    first, dtype = np.zeros((2, 3), np.float32), "F64" if other.dtype == np.float64 else "F32"
    with pytest.raises(CheckpointError, match=r"b: is .* which does not go beside F32"):
        lazy(first).joined_with([lazy(other, dtype, "b")], 1)


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [(["BF16"], "BF16"), (["F16", "BF16"], "F32"), (["BF16", "F32"], "F32"), (["F16", "F64"], "F64")],
)
def test_the_format_that_holds_both(dtypes, common):
    assert common_format(dtypes) == common
    values = [1.0, -0.5, 2.0**-14, float("inf")]
    for dtype in dtypes:
        wide = of_torch(values, dtype).widened(common)
        assert same_numbers(wide, of_torch(values, common)) and same_numbers(of_torch(values, dtype), wide)


def test_bf16_is_read_exactly():
    values = [0.0, -0.0, 1.0, 3.140625, 1e38, float("-inf")]
    tensor = of_torch(values, "BF16")
    import torch

    assert as_float32(tensor.load(), "BF16").tolist() == torch.tensor(values, dtype=torch.bfloat16).tolist()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_what_is_not_finite_is_counted(dtype):
    values = [1.0, float("nan"), float("inf"), 0.0, float("-inf"), 60000.0]
    assert count_not_finite(of_torch(values, dtype).load(), dtype) == 3
    assert count_not_finite(np.array([255], np.uint8), "U8") == 0


@given(st.binary(max_size=50), st.integers(0, 60))
def test_bytes_are_compared_to_the_last(content, place):
    a = np.frombuffer(content, np.uint8)
    assert same_bytes(a, a.copy())
    if place < len(content):
        b = a.copy()
        b[place] ^= 1
        assert not same_bytes(a, b)


def test_bits_know_shapes_and_formats():
    a = np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert same_bits(a, a.copy()) and same_bits(a.T, np.ascontiguousarray(a.T))
    assert not same_bits(a, a.reshape(3, 2)) and not same_bits(a, a.astype(np.uint32))
    assert not same_numbers(lazy(a, "U16"), lazy(a, "F16")), "no numbers of one kind"


def test_reading_ahead_keeps_the_order_and_gives_the_error_in_its_turn():
    def broken() -> np.ndarray:
        raise CheckpointError("broken")

    tensors = [lazy(np.full(2, n, np.float32)) for n in range(3)]
    assert [bits.view(np.float32)[0] for bits in read_ahead(tensors)] == [0, 1, 2]
    assert list(read_ahead([])) == []
    reader = read_ahead([tensors[0], LazyTensor("F32", (2,), broken, "b")])
    assert next(reader).view(np.float32)[0] == 0
    with pytest.raises(CheckpointError, match="broken"):
        next(reader)
