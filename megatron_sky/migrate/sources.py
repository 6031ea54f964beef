"""Megatron-LM's lists of token files, `WEIGHT PREFIX ...` or `PREFIX ...`, as sources of a recipe."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import PurePath

from megatron_sky.migrate.arguments import NOT_COMPUTED, VARIABLE, Arguments, Untold, is_number, split_words
from megatron_sky.migrate.limits import MAX_BYTES
from megatron_sky.migrate.translation import TO_GIVE

LISTS, SPLIT_LISTS = "data-args-path", "per-split-data-args-path"


def training_list(args: Arguments) -> tuple[str, list[str]] | None:
    """(flag, its words) of the list of training files, which may stand in a file; None where there is none.

    Raises Untold where the file can't be read, or is no list.
    """
    for name in ("train-data-path", "data-path"):
        if args.has(name):
            return name, args.values(name) or []
    if args.has(LISTS):
        return LISTS, _read(args, LISTS).split()
    return (SPLIT_LISTS, _of_split(args, "train")) if args.has(SPLIT_LISTS) else None


def validation_list(args: Arguments) -> tuple[str, list[str]] | None:
    """As `training_list`, of the files for validation, where they are others."""
    if args.has("valid-data-path"):
        return "valid-data-path", args.values("valid-data-path") or []
    if not args.has(SPLIT_LISTS):
        return None
    words = _of_split(args, "valid")
    return (SPLIT_LISTS, words) if words else None


def _of_split(args: Arguments, split: str) -> list[str]:
    try:
        given = json.loads(_read(args, SPLIT_LISTS))
        words = given[split] or []
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Untold(f"--{SPLIT_LISTS} {args.one(SPLIT_LISTS)} is no JSON with lists train, valid and test") from None
    return words.split() if isinstance(words, str) else [str(word) for word in words]


def _read(args: Arguments, flag: str) -> str:
    """The text of the file that a flag names."""
    path = args.one(flag)
    if isinstance(path, Untold):
        raise path
    try:
        if not os.path.isfile(path):
            raise Untold(f"--{flag} {path} is not a file here; give the sources it lists, or run this where it is")
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Untold(f"--{flag} {path} can't be read: {error}") from None
    if len(text) > MAX_BYTES:
        raise Untold(f"--{flag} {path} has more than {MAX_BYTES:,} characters")
    return text


def sources_of(flag: str, values: list[str]) -> list[dict]:
    """Sources of `PREFIX...` or of `WEIGHT PREFIX WEIGHT PREFIX...`, each with a name of its own."""
    words = [word for value in values for word in split_words(value)]  # a blend may come as one quoted text
    given = f"--{flag} {' '.join(words)}"
    if not words or re.search(NOT_COMPUTED, given):
        raise Untold(f"{given} is not computed" if words else f"{given}has no value")
    weights: Sequence[object] = words[::2]
    paths = words[1::2]
    open_ones = [bool(VARIABLE.fullmatch(weight)) for weight in words[::2]]
    numbers = [is_number(weight) for weight in weights]
    if len(words) % 2 or (not any(numbers) and not all(open_ones)):
        weights, paths = [1.0 if len(words) == 1 else [*TO_GIVE] for _ in words], words
    elif not any(numbers) or not all(a or b for a, b in zip(numbers, open_ones, strict=True)):
        raise Untold(f"{given} may be weights and sources, or sources alone")
    return [
        {"name": name, "path": path, "weight": float(weight) if is_number(weight) else weight}
        for name, path, weight in zip(_names(paths), paths, weights, strict=True)
    ]


def _names(paths: list[str]) -> list[str]:
    """Of each path its last part, in the letters that a source's name may have, none twice."""
    names: list[str] = []
    for path in paths:
        base = re.sub(r"[^A-Za-z0-9_.-]", "_", PurePath(path).name).strip("_") or "text"
        name, number = base, len(names)
        while name in names:
            name, number = f"{base}_{number}", number + 1
        names.append(name)
    return names
