"""What a conversion wrote, opened and read as its users will: by its index or config and under all its names."""

from pathlib import Path

from megatron_sky.checkpoint.description import SHAPE_FIELDS
from megatron_sky.checkpoint.reader import torch_dist
from megatron_sky.convert.sources import NATIVE, Source, open_source
from megatron_sky.errors import CheckpointError, SkyError


def verify_readable(source: Source, folder: Path) -> None:
    """Raises CheckpointError unless `folder` opens as the model of `source`, with all its weights, each in its format.

    No numbers are read again: each was compared as it was written, and where the index or the header says that it
    lies, a tensor of its name, shape and format is found.
    """
    try:
        written = open_source(folder, vocab_size=source.model.vocab_size)
        if written.kind == NATIVE:
            torch_dist.check_chunks(folder, torch_dist.read_stored(folder))
    except SkyError as error:
        raise CheckpointError(f"{folder}: was written, but can't be read again: {error}") from error
    wrong = [f"model.{name}: {a!r} became {b!r}" for name, a, b in _differing_fields(source, written)]
    for name in source.weights.keys() | written.weights.keys():
        a, b = source.weights.get(name), written.weights.get(name)
        if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
            wrong.append(f"{name}: {_shown(a)} became {_shown(b)}")
    if wrong:
        raise CheckpointError(
            f"{folder}: was written, but reads otherwise than its source:\n  " + "\n  ".join(wrong[:20])
        )


def _differing_fields(source: Source, written: Source) -> list[tuple[str, object, object]]:
    """(field, value in the source, value as written) of all that changes what the model computes."""
    names = [*SHAPE_FIELDS, "seq_length"]
    if written.kind != NATIVE:
        names.remove("padded_vocab_size")  # other folders have no padding
    values = ((name, getattr(source.model, name), getattr(written.model, name)) for name in names)
    return [(name, a, b) for name, a, b in values if a != b]


def _shown(tensor) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
