"""What the model that a run began with says of a pair's preference data: `<prefix>.reference`.

For each sample the log-probability of its answer under that model, computed once and read by every run on the same base
and data. docs/formats.md gives the bytes.
"""

import struct
from pathlib import Path

import numpy as np

from megatron_sky.errors import CheckpointError
from megatron_sky.files import read_bytes, write_bytes

MAGIC = b"SKYREFLP"
VERSION = 1
HEADER = struct.Struct("<8sQQ32s16s")  # magic, version, samples, the base's hash, the pair's fingerprint
_MAX_BYTES = 1 << 32


def reference_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.reference")


def write_reference(prefix: str | Path, values: np.ndarray, *, base: str, pair: str) -> None:
    """Writes a sample's log-probability (nats) each, float32 `[samples]`.

    `base`: SHA-256 of the model; `pair`: `sources.fingerprint` of the pair. Raises CheckpointError.
    """
    path, stored = reference_path(prefix), np.ascontiguousarray(values, "<f4")
    header = HEADER.pack(MAGIC, VERSION, len(stored), bytes.fromhex(base), bytes.fromhex(pair))
    try:
        write_bytes(path, header + stored.tobytes(), sync=True)
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be written: {error.strerror}\n  fix: make the folder writable, or copy the pair elsewhere"
        ) from error


def read_reference(prefix: str | Path, samples: int, *, base: str, pair: str) -> np.ndarray | None:
    """What `write_reference` wrote of a pair with so many samples; None where there is no file.

    Raises CheckpointError where it is damaged, or of another model or other data.
    """
    path = reference_path(prefix)
    try:
        content = read_bytes(path, _MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    fix = f"  fix: remove {path}, and the next run computes it anew"
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise CheckpointError(f"{path}: is no file of reference log-probabilities\n{fix}")
    _, version, count, of_base, of_pair = HEADER.unpack_from(content)
    if version != VERSION or len(content) != HEADER.size + 4 * count:
        raise CheckpointError(f"{path}: is of version {version}, or damaged\n{fix}")
    if of_base.hex() != base:
        raise CheckpointError(
            f"{path}: holds log-probabilities of another base ({of_base.hex()[:12]}) than finetune.base ({base[:12]})\n"
            f"  fix: give that base; or copy the pair to another name for this one; or remove {path}"
        )
    if of_pair.hex() != pair or count != samples:
        raise CheckpointError(f"{path}: belongs to other tokens than stand beside it\n{fix}")
    return np.frombuffer(content, "<f4", offset=HEADER.size)
