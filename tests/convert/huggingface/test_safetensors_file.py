"""Headers that do not describe their file are refused, before anything of the size they claim is allocated."""

import json

import pytest

from megatron_sky.convert.huggingface.safetensors_file import Entry, build_header, read_tensors
from megatron_sky.errors import CheckpointError


def write(path, header: dict | str, data: bytes = bytes(16)):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape=None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_file_is_read_back(tmp_path):
    header = build_header([Entry("a", "F32", (2,)), Entry("b", "BF16", (2, 2))])
    (tmp_path / "a.safetensors").write_bytes(header + bytes(range(16)))
    found = read_tensors(tmp_path / "a.safetensors")
    assert found["b"].load().tolist() == [[0x0908, 0x0B0A], [0x0D0C, 0x0F0E]]


BAD = {
    "a gap": ({"a": entry(0, 4), "b": entry(8, 16)}, "begins at byte 8, where the tensor before ends at 4"),
    "an overlap": ({"a": entry(0, 12), "b": entry(8, 16)}, "begins at byte 8, where the tensor before ends at 12"),
    "bytes before the first": ({"a": entry(4, 16)}, "begins at byte 4"),
    "bytes after the last": ({"a": entry(0, 12)}, "has .* bytes, its header describes"),
    "another size": ({"a": entry(0, 16, [5])}, r"shape \[5\] needs 20 bytes, not 16"),
    "a huge shape": ({"a": entry(0, 16, [2**33, 2**33])}, r"needs 295,147,905,179,352,825,856 bytes, not 16"),
    "a negative size": ({"a": entry(0, 16, [-4])}, "its description can't be read: shape"),
    "a size that is no number": ({"a": entry(0, 16, ["4"])}, "its description can't be read: shape"),
    "backwards": ({"a": entry(16, 0, [0])}, "needs 0 bytes, not -16"),
    "one name twice": ('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 16)),) * 2), "'a' stands in it twice"),
    "brackets": ("[" * 100_000, "can't be read as a safetensors file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_header_that_is_not_the_files_is_refused(kind, tmp_path):
    header, said = BAD[kind]
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{said}"):
        read_tensors(write(tmp_path / "a.safetensors", header))
