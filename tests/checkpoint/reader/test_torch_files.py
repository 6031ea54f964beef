"""Archives of torch.save whose pickle claims other than is there: nothing outside the storage is read or allocated."""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.errors import CheckpointError

NUMBERS = np.arange(8, dtype=np.float32)


class View:
    """Pickled as torch pickles a tensor: a view on the storage `data/0`."""

    def __init__(self, offset, size, stride, storage=torch.FloatStorage):
        self.view = offset, size, stride
        self.storage = storage

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Storage(self.storage), *self.view, False, collections.OrderedDict())


class Storage:
    def __init__(self, kind):
        self.kind = kind


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", value.kind, "0", "cpu", len(NUMBERS)) if isinstance(value, Storage) else None


def archive(path: Path, view: View, data: bytes = NUMBERS.tobytes()) -> TorchArchive:
    content = io.BytesIO()
    _Pickler(content, 2).dump(view)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content.getvalue())
        file.writestr("archive/data/0", data)
    return TorchArchive(path)


def read(path: Path, *view) -> np.ndarray:
    opened = archive(path, View(*view))
    return opened.tensor(opened.content(), "w").load().view(np.float32)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ((0, (8,), (1,)), NUMBERS),
        ((2, (2, 3), (3, 1)), NUMBERS[2:].reshape(2, 3)),
        ((0, (4, 2), (1, 4)), NUMBERS.reshape(2, 4).T),
        ((7, (), ()), NUMBERS[7]),
        ((0, (2, 2), (0, 1)), [NUMBERS[:2]] * 2),
        ((0, (0, 5), (5, 1)), np.empty((0, 5))),
    ],
    ids=str,
)
def test_views_inside_their_storage_are_read(view, expected, tmp_path):
    assert np.array_equal(read(tmp_path / "a.pt", *view), expected)


OUTSIDE = {
    "backwards": (0, (2, 2), (-64, 1)),
    "its own beginning again": (0, (8, 8), (0, -1)),
    "before the storage": (-1, (2,), (1,)),
    "beyond the storage": (0, (9,), (1,)),
    "begins beyond it": (8, (1,), (1,)),
    "steps beyond it": (0, (2, 2), (7, 1)),
    "one element very often": (0, (2**40,), (0,)),
    "more than memory": (0, (2**62, 2**62), (2**62, 1)),
    "fewer strides": (0, (2, 2), (1,)),
    "more strides": (0, (2,), (1, 1)),
    "a size that is no whole number": (0, (2.0,), (1,)),
    "a stride that is no number": (0, (2,), ("1",)),
    "an offset that is no number": (None, (2,), (1,)),
    "a truth for a size": (0, (True,), (1,)),
    "a size that is no list": (0, 8, (1,)),
    "a negative size": (0, (-2, -2), (1, 1)),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_views_outside_their_storage_are_refused(kind, tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.pt: (w: needs [\d,]+ bytes|is refused or damaged: a tensor's)"):
        read(tmp_path / "a.pt", *OUTSIDE[kind])


def test_a_member_that_claims_more_than_there_is_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    archive(path, View(0, (8,), (1,)))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")  # the directory's entry of the numbers
    for field in (20, 24):  # its sizes, stored and whole
        data[place + field : place + field + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pt: is no archive of torch\.save, or truncated"):
        TorchArchive(path)


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data.pkl", pickle.dumps({}))
        file.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"archive/data\.pkl is in it twice"):
        TorchArchive(tmp_path / "a.pt")


def test_formats_without_a_storage_class_are_named(tmp_path):
    torch.save({"a": torch.zeros(4, dtype=torch.float8_e4m3fn), "b": torch.zeros(2).bfloat16()}, tmp_path / "a.pt")
    opened = TorchArchive(tmp_path / "a.pt")
    tensors = {name: opened.tensor(ref, name) for name, ref in opened.content().items()}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {"a": "F8_E4M3", "b": "BF16"}
    assert not tensors["a"].is_weight
