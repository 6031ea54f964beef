"""JSON of other programs, read strictly: an object whose keys each stand in it once."""

from pathlib import Path

from megatron_sky.errors import CheckpointError
from megatron_sky.files import read_json


def read_object(path: Path) -> dict:
    """The object in a file. Raises CheckpointError where it is missing, none, or says a thing twice."""
    try:
        content = read_json(path, object_pairs_hook=only_once)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing\n  fix: give a whole folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return content


def only_once(pairs: list[tuple[str, object]]) -> dict:
    """For json's `object_pairs_hook`: json itself takes the last of several values of a key. Raises ValueError."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return content
