"""The safetensors format, read lazily and written as a stream.

    8 bytes   N, the header's length, little-endian unsigned
    N bytes   JSON: name -> {dtype, shape, data_offsets: [begin, end] counted from the header's end}, padded with spaces
    the rest  the tensors' bytes, row-major, little-endian, without gaps

The header needs only names and shapes, so it is written before any tensor is read; the safetensors package would ask
for all tensors of a file at once.
"""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint.reader.lazy import ITEM_SIZE, LazyTensor, in_file
from megatron_sky.checkpoint.reader.pickles import counts
from megatron_sky.convert.json_object import only_once
from megatron_sky.errors import CheckpointError
from megatron_sky.files import open_regular, parse_json

_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000  # the format's own limit, bytes


@dataclass(frozen=True)
class Entry:
    """One tensor of a file to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return ITEM_SIZE[self.dtype] * math.prod(self.shape)


def build_header(entries: list[Entry]) -> bytes:
    """The bytes that stand before the tensors, which must follow in the order of `entries`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        end = begin + entry.num_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return _LENGTH.pack(len(text)) + text


def read_tensors(path: Path) -> dict[str, LazyTensor]:
    """Name -> tensor of a file, of any number format: not all that lies in a file is a weight.

    Raises CheckpointError where the file is missing, truncated, or no such file, and where its tensors overlap or leave
    bytes between them.
    """
    header, start = _read_header(path)
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            dtype, shape = str(entry["dtype"]), counts(entry["shape"], "shape")
            begin, end = counts(entry["data_offsets"], "data_offsets")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {name}: its description can't be read: {error}") from error
        if dtype in ITEM_SIZE and ITEM_SIZE[dtype] * math.prod(shape) != end - begin:
            needed = f"{ITEM_SIZE[dtype] * math.prod(shape):,}"
            raise CheckpointError(f"{path}: {name}: shape {list(shape)} needs {needed} bytes, not {end - begin:,}")
        tensors[name] = in_file(path, start + begin, dtype, shape, name)
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached or end < begin:
            raise CheckpointError(
                f"{path}: {name}: begins at byte {begin:,}, where the tensor before ends at {reached:,}"
            )
        reached = end
    if path.stat().st_size != start + reached:
        raise CheckpointError(
            f"{path}: has {path.stat().st_size:,} bytes, its header describes {start + reached:,}: truncated or damaged"
        )
    return tensors


def _read_header(path: Path) -> tuple[dict, int]:
    """(the header, where the tensors begin)."""
    try:
        with open_regular(path) as file:
            prefix = file.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, os.fstat(file.fileno()).st_size):
                raise CheckpointError(f"{path}: is no safetensors file, or truncated within its header")
            header = parse_json(file.read(length), object_pairs_hook=only_once)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read as a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: can't be read as a safetensors file: its header is no table of tensors")
    return header, _LENGTH.size + length
