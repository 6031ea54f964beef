"""What a file or a recipe holds, as the dataclass or model that describes it; and pydantic's errors in plain words.

pydantic is imported when something is read: `--help` does without it.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_sky.errors import Problem

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")
_MOST_PROBLEMS = 5  # of one file; a file of another kind breaks every rule
_RULES = {"missing": "is required and not given", "extra_forbidden": "is not a known key"}


class BadRecord(ValueError):
    """Values that are not what a record should be; its text names each field, its value and the rule."""


def read_record(kind: type[T], given: object) -> T:
    """`given`, from JSON, as the dataclass or other type `kind`.

    Fields that are not given have their defaults, and fields that `kind` does not have are passed over. Raises
    BadRecord.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(given)  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        problems = [problem_of(detail) for detail in error.errors(include_url=False)]
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise BadRecord("; ".join(map(str, problems[:_MOST_PROBLEMS])) + more) from None


@functools.cache
def _adapter(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def problem_of(error: "ErrorDetails", where: str | None = None, fix: str = "") -> Problem:
    """One of a ValidationError's errors as a Problem, at `where` or else at its own dotted key."""
    rule = _RULES.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    value: Any = error["input"]
    shown = value if isinstance(value, str | int | float) else None
    return Problem(where or dotted_key(error["loc"]) or "it", rule.removeprefix("input "), fix, shown)


def flattened(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """`{"model.hidden_size": 8}` of `{"model": {"hidden_size": 8}}`; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def more_than_once(names: Iterable[str]) -> list[str]:
    """The names that come more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def dotted_key(place: tuple[int | str, ...]) -> str:
    """`sources.0.path` of pydantic's `("sources", 0, "path")`."""
    return ".".join(map(str, place))
