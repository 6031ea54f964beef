"""Every key of a recipe with what it stands for, and the one that a key which is none was meant to be."""

import difflib
import functools
import re
import typing
from dataclasses import dataclass

from megatron_sky.config.schema import Config, Section
from megatron_sky.config.sections.base import kinds_in

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # of a list's item
_NEAR_SIBLING = 0.6  # of difflib's ratio, from which a name of the same section is near enough to be meant
_NEAR_ELSEWHERE = 0.75


def meaning_of(key: str, recipe: type[Section] = Config) -> str:
    """What the dotted key of this kind of recipe stands for, with its unit; "" where there is no such key."""
    known = _known_keys(recipe).get(_NUMBER.sub("*", key))
    return known.meaning if known else ""


def takes_text(key: str, recipe: type[Section] = Config) -> bool:
    """Whether the value of the dotted key is free text, or a path."""
    known = _known_keys(recipe).get(_NUMBER.sub("*", key))
    return known is not None and known.takes_text


def nearest_key(key: str, recipe: type[Section] = Config) -> str:
    """The key that the unknown `key` was meant to be, as a question; where none is near, those of its section."""
    parent, _, name = _NUMBER.sub("*", key).rpartition(".")
    keys = _known_keys(recipe)
    siblings = [_name_of(known) for known in keys if known.rpartition(".")[0] == parent]
    if near := difflib.get_close_matches(name, siblings, n=1, cutoff=_NEAR_SIBLING):
        own_parent = key.rpartition(".")[0]
        return f"did you mean {own_parent}.{near[0]}?" if parent else f"did you mean {near[0]}?"
    names = {_name_of(known) for known in keys}
    if near := difflib.get_close_matches(name, names, n=1, cutoff=_NEAR_ELSEWHERE):
        elsewhere = [known for known in keys if _name_of(known) == near[0]]
        return f"did you mean {' or '.join([known for known in elsewhere if '*' not in known] or elsewhere)}?"
    return f"{key.rpartition('.')[0] or 'the recipe'} has: {', '.join(siblings)}" if siblings else "remove it"


def _name_of(key: str) -> str:
    return key.rpartition(".")[2]


@dataclass(frozen=True)
class _Key:
    meaning: str
    takes_text: bool


@functools.cache
def _known_keys(recipe: type[Section]) -> dict[str, _Key]:
    """Every dotted key, `*` for a list's items."""
    keys: dict[str, _Key] = {}

    def add(prefix: str, section: type[Section]) -> None:
        for name, info in section.model_fields.items():
            key, below = prefix + name, _sections_in(info.annotation)
            meaning = info.description or next(((part.__doc__ or "").splitlines()[0] for part in below), "")
            keys[key] = _Key(meaning, str in kinds_in(info.annotation))
            for part in below:
                add(f"{key}.*." if _is_list(info.annotation) else f"{key}.", part)

    add("", recipe)
    return keys


def _sections_in(annotation: object) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]


def _is_list(annotation: object) -> bool:
    return typing.get_origin(annotation) is tuple or any(map(_is_list, typing.get_args(annotation)))
