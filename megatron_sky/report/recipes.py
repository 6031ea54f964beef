"""Where the resolved recipes of several runs differ, key by key."""

import json
from collections.abc import Iterator, Mapping

from megatron_sky.report.content import Block, table

_ABSENT = "-"


def recipe_differences(recipes: Mapping[str, str | None], notes: list[str]) -> list[Block]:
    """A table of the keys whose values differ, a column a run; runs whose recipe can't be read are told in `notes`."""
    read = {name: _read(name, text, notes) for name, text in recipes.items()}
    known = {name: dict(_leaves(value, "")) for name, value in read.items() if value is not None}
    keys = dict.fromkeys(key for values in known.values() for key in values)
    rows = [
        [key, *(values.get(key, _ABSENT) for values in known.values())]
        for key in keys
        if len({values.get(key, _ABSENT) for values in known.values()}) > 1
    ]
    return table(["key", *known], rows, "n" + "t" * len(known))


def _read(name: str, text: str | None, notes: list[str]) -> dict | None:
    import yaml

    if text is None:
        notes.append(f"{name}: has no config.yaml to compare")
        return None
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        notes.append(f"{name}: config.yaml is not YAML ({' '.join(str(error).split())})")
        return None
    if not isinstance(found, dict):
        notes.append(f"{name}: config.yaml holds no sections")
        return None
    return found


def _leaves(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as text; the entries of a list that have names are told apart by them."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        value = {str(each["name"]): {k: v for k, v in each.items() if k != "name"} for each in value}
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
