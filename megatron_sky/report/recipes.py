"""Where the resolved recipes of several runs differ, key by key."""

import json
from collections.abc import Iterator, Mapping, Sequence

from megatron_sky.report.content import Block, table

_ABSENT = object()


def recipe_differences(recipes: Mapping[str, str | None], notes: list[str]) -> list[Block]:
    """A table of the keys whose values differ, a column a run; runs whose recipe can't be read are told in `notes`."""
    read = {name: _read(name, text, notes) for name, text in recipes.items()}
    known = {name: value for name, value in read.items() if value is not None}
    rows = list(_rows("", list(known.values())))
    return table(["key", *known], rows, "n" + "t" * len(known))


def _read(name: str, text: str | None, notes: list[str]) -> dict | None:
    import yaml

    from megatron_sky.config import strict_yaml

    if text is None:
        notes.append(f"{name}: has no config.yaml to compare")
        return None
    try:
        recipe = _by_name(strict_yaml.load(text, name))
    except yaml.YAMLError as error:
        notes.append(f"{name}: config.yaml is not YAML ({' '.join(str(error).split())})")
        return None
    if not isinstance(recipe, dict):
        notes.append(f"{name}: config.yaml holds no sections")
        return None
    return recipe


def _by_name(value: object) -> object:
    """Lists whose entries all have names as mappings by name, at every depth."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {str(item["name"]): {key: of for key, of in item.items() if key != "name"} for item in value}
    if isinstance(value, list):
        return [_by_name(item) for item in value]
    return {str(key): _by_name(item) for key, item in value.items()} if isinstance(value, dict) else value


def _rows(key: str, values: Sequence[object]) -> Iterator[list[str]]:
    """The rows of what lies under `key`, of which each run has a value or none.

    A section that some runs lack is one row where the others have it alike.
    """
    if len({_text(value) for value in values}) <= 1:
        return
    sections = [value for value in values if isinstance(value, dict) and value]
    if not sections or any(value not in sections and value not in (_ABSENT, None, [], {}) for value in values):
        yield [key, *map(_text, values)]
    elif len(sections) < len(values) and all(section == sections[0] for section in sections):
        yield [key, *("given" if value in sections else _text(_ABSENT) for value in values)]
    else:
        for name in dict.fromkeys(name for section in sections for name in section):
            own = [value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT for value in values]
            yield from _rows(f"{key}.{name}" if key else name, own)


def _text(value: object) -> str:
    if value is _ABSENT:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
