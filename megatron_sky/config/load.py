"""Recipe files and overrides in, one frozen `Config` out.

YAML files layer left to right, then dotted `key=value` overrides; mappings merge key by key, everything else (lists
too) is replaced whole. Each value remembers the file and line that set it, so that an error can point there. All
problems are told at once, with the nearest known name for a typo.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import ValidationError

from megatron_sky.config import strict_yaml
from megatron_sky.config.epochs import fill_from_epochs
from megatron_sky.config.known_keys import meaning_of, nearest_key, takes_text
from megatron_sky.config.schema import Config, Section
from megatron_sky.config.sections.base import KEEP_UNSET, expand_variables
from megatron_sky.errors import ConfigError, Problem, told_once
from megatron_sky.files import read_text
from megatron_sky.records import dotted_key, problem_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Place = str  # "file.yaml:12" or "command line"
Recipe = TypeVar("Recipe", bound=Section)


def load_config(files: Sequence[str | Path], overrides: Iterable[str] = (), *, keep_unset: bool = False) -> Config:
    """The recipe made of `files`, left to right, and then `overrides` such as `train.micro_batch_size=2`.

    `keep_unset`: a path that names a variable which is not set stays as it is written, as in a recipe of another place.

    Raises ConfigError with every problem found in reading and in the sections' own rules. Rules that span sections
    and need the number of ranks are `validate.check`'s.
    """
    fill = None if keep_unset else fill_from_epochs  # else of another place, whose data lie elsewhere
    return load_as(Config, files, overrides, keep_unset=keep_unset, fill=fill)


def load_as(
    recipe: type[Recipe],
    files: Sequence[str | Path],
    overrides: Iterable[str] = (),
    *,
    keep_unset: bool = False,
    fill: Callable[[dict], list[Problem]] | None = None,
) -> Recipe:
    """`load_config` of a recipe of another kind, described by its own sections.

    `fill`: sets in the tree of all files what follows from other values of it; returns problems.
    """
    problems: list[Problem] = []
    tree: dict = {}
    places: dict[str, Place] = {}
    layers = [layer for file in files if (layer := _read_file(Path(file), places, problems)) is not None]
    if len(layers) < len(files):  # what is said of the rest would only follow from that
        raise ConfigError(problems)
    for layer in layers:
        _merge(tree, layer)
    for text in overrides:
        _apply_override(tree, text, places, problems)
    if fill is not None:
        problems += fill(tree)
    config = None
    try:
        config = recipe.model_validate(_expand_numbers(tree, "", recipe, problems), context={KEEP_UNSET: keep_unset})
    except ValidationError as error:
        details = _drop_derived_errors(error.errors(include_url=False))
        problems += [_problem(detail, places, recipe) for detail in details]
    if problems or config is None:
        raise ConfigError(told_once(problems))  # a union's branches fail one by one
    return config


def load_recipe(arguments: Sequence[str]) -> Config:
    """`load_config` of a command line: what is there, or is named as a file, is a recipe file, all else an override."""
    return load_config(*split_arguments(arguments))


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The recipe files of a command line, and its overrides."""
    files = [argument for argument in arguments if os.path.exists(argument) or _is_named_as_file(argument)]
    return files, [argument for argument in arguments if argument not in files]


def _is_named_as_file(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return argument.endswith((".yaml", ".yml")) and (not equals or "/" in key)  # as in runs/lr=3e-4/config.yaml


def dump_config(config: Section) -> str:
    """The resolved recipe as YAML; `load_config` of it gives an equal Config."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def _read_file(path: Path, places: dict[str, Place], problems: list[Problem]) -> dict | None:
    """The file's mapping; None, and the problem told, where it has none."""
    try:
        return _parse(path, read_text(path, 4 * strict_yaml.MAX_CHARACTERS), places, problems)
    except FileNotFoundError:
        problems.append(Problem(str(path), "no such recipe file", _near_file(path)))
    except IsADirectoryError:
        problems.append(Problem(str(path), "is a folder, not a recipe file", _near_file(path / "any")))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), f"can't be read: {error}", "give a readable UTF-8 YAML file"))
    except yaml.YAMLError as error:
        problems.append(Problem(str(path), f"is not valid YAML: {error}", "fix the file at that place"))
    return None


def _parse(path: Path, text: str, places: dict[str, Place], problems: list[Problem]) -> dict | None:
    node = strict_yaml.compose(text, str(path))
    if node is None:
        return {}
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, str(path), "", places, problems)
    problems.append(Problem(str(path), "a recipe must be a mapping of sections", "start it with a section"))
    return None


def _build(node: yaml.Node, file: str, key: str, places: dict, problems: list[Problem]) -> object:
    """The node as plain Python, each dotted key's place noted, keys given twice told."""
    places[key] = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, file, key, places, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, file, f"{key}.{i}", places, problems) for i, item in enumerate(node.value)]
    return strict_yaml.scalar(node)


def _build_mapping(node: yaml.MappingNode, file: str, key: str, places: dict, problems: list[Problem]) -> dict:
    places[key] = f"{file}:{node.start_mark.line + 1}"
    own, merged = strict_yaml.entries(node)
    mapping: dict = {}
    own_names: set[str] = set()
    for number, (name_node, value_node) in enumerate([*merged, *own]):
        name = str(strict_yaml.scalar(name_node))
        dotted = f"{key}.{name}" if key else name
        if name in own_names:
            line = name_node.start_mark.line + 1
            problems.append(Problem(dotted, f"is given twice in one mapping ({file}:{line})", "remove one of the two"))
        if number >= len(merged):
            own_names.add(name)
        mapping[name] = _build(value_node, file, dotted, places, problems)
    return mapping


def _merge(base: dict, over: dict) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _apply_override(tree: dict, text: str, places: dict[str, Place], problems: list[Problem]) -> None:
    key, equals, value_text = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[\w-]+)*", key):
        problems.append(
            Problem(text, "is neither a recipe file (.yaml) nor an override", "write overrides as section.key=value")
        )
        return
    try:
        value = strict_yaml.load(value_text, key)
    except yaml.YAMLError as error:
        problems.append(Problem(key, f"has a value that is not valid YAML: {error}", "quote it", value_text))
        return
    *parents, leaf = key.split(".")
    numbered = []  # the key with the numbers of list items for their names
    here: dict | list = tree
    for depth, name in enumerate(parents):
        child = _child(here, name)
        numbered.append(str(_index(here, name)) if isinstance(here, list) else name)
        if child is None and isinstance(here, dict):
            child = here[name] = {}
        if not isinstance(child, dict | list):
            where = ".".join(parents[: depth + 1])
            problems.append(Problem(key, f"can't be set: {where} is not a section", f"check the name {where!r}"))
            return
        here = child
    if isinstance(here, list):
        number = _index(here, leaf)
        if number is None:
            names = ", ".join(str(entry["name"]) for entry in here if isinstance(entry, dict) and "name" in entry)
            fix = f"use one of {names}" if names else f"use {'.'.join(parents)}.0 and so on"
            problems.append(Problem(key, f"needs a name in the list, or an index below {len(here)}", fix))
            return
        here[number] = value
        leaf = str(number)
    else:
        here[leaf] = value
    set_key = ".".join([*numbered, leaf])
    for known in [known for known in places if known == set_key or known.startswith(set_key + ".")]:
        del places[known]
    places[set_key] = "command line"


def _child(node: dict | list, name: str) -> object:
    if isinstance(node, list):
        number = _index(node, name)
        return None if number is None else node[number]
    return node.get(name)


def _index(items: list, name: str) -> int | None:
    """The place of the item of this name, or of this number, in a list."""
    for number, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == name:
            return number
    return int(name) if name.isdigit() and int(name) < len(items) else None


def _expand_numbers(node: object, key: str, recipe: type[Section], problems: list[Problem]) -> object:
    """Variables in what is not to be a text: a number or a word. Paths have theirs expanded by their own fields, and
    other texts none: they would be stored, and a variable may hold a secret."""
    if isinstance(node, dict):
        return {
            name: _expand_numbers(value, f"{key}.{name}" if key else name, recipe, problems)
            for name, value in node.items()
        }
    if isinstance(node, list):
        return [_expand_numbers(value, f"{key}.{i}", recipe, problems) for i, value in enumerate(node)]
    if not isinstance(node, str) or takes_text(key, recipe):
        return node
    try:
        return expand_variables(node)
    except ValueError as error:
        problems.append(Problem(key, str(error), "", node))
        return node


def _drop_derived_errors(errors: list["ErrorDetails"]) -> list["ErrorDetails"]:
    """Without the errors that only follow from another: a shape unknown as the preset is, a union's other branch."""
    bad_preset = any(error["loc"] == ("model", "preset") for error in errors)
    places = [_dotted(error) for error in errors if error["type"] != "model_type"]
    return [
        error
        for error in errors
        if not (bad_preset and error["type"] == "missing" and error["loc"][0] == "model")
        and not (error["type"] == "model_type" and _dotted(error) in places)
    ]


def _problem(error: "ErrorDetails", places: dict[str, Place], recipe: type[Section]) -> Problem:
    dotted = _dotted(error)
    place = _place(dotted, places)
    where = f"{dotted or 'the recipe'} ({place})" if place else (dotted or "the recipe")
    kind, meaning = error["type"], meaning_of(dotted, recipe)
    if kind == "model_type":
        return Problem(where, "is a section", f"give its fields, as {dotted}.NAME=VALUE: {meaning}", error["input"])
    if kind == "extra_forbidden":
        fix = nearest_key(dotted, recipe)
    elif kind == "missing":
        fix = f"add it: {meaning}"
    else:
        fix = f"give what it stands for: {meaning}" if meaning else ""
    return problem_of(error, where, fix)


def _dotted(error: "ErrorDetails") -> str:
    """The dotted key of pydantic's location, without the names it adds for the branches of a union."""
    branch = re.compile(r"[\[\]()]|^(constrained-)?(float|int|str)$|^Ramp$")
    return dotted_key(tuple(part for part in error["loc"] if not branch.search(str(part))))


def _place(dotted: str, places: dict[str, Place]) -> Place | None:
    while dotted:
        if dotted in places:
            return places[dotted]
        dotted = dotted.rpartition(".")[0]
    return None


def _near_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    if folder is None:
        return f"the folder {path.parent} does not exist"
    names = [path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml")]
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean {folder / close[0]}?"
    return f"recipes in {folder}: {', '.join(sorted(names))}" if names else f"{folder} holds no .yaml file"
