"""What the sections of a recipe have in common: frozen models, and kinds of values."""

import os
import re
from collections.abc import Iterable
from functools import cache
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationInfo, model_validator

from megatron_sky.control import find_control
from megatron_sky.records import more_than_once

KEEP_UNSET = "keep_unset"
"""In a validation's context: a variable that is not set stays as it is written, as in a recipe of another machine."""

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class GivenPath(str):
    """A path that the recipe gives with variables or a `~` for the home; `written`, so, it is stored."""

    written: str


def expand_variables(text: str, keep_unset: bool = False) -> str:
    """`${NAME}` and `${NAME:-default}` from the environment; `$${` stands for `${`. Raises ValueError for one unset."""

    def value_of(match: re.Match) -> str:
        name, default = match.groups()
        if name is None:
            return "${"
        value = os.environ.get(name, default)
        if value is None and not keep_unset:
            raise ValueError(f"names the environment variable {name}, which is not set; export {name}=...")
        return match.group() if value is None else value

    return _VARIABLE.sub(value_of, text)


def _expanded(text: str, info: ValidationInfo) -> str:
    path = expand_variables(text, bool(info.context and info.context.get(KEEP_UNSET)))
    return _stored_as(os.path.expanduser(path), getattr(text, "written", text))


def _stored_as(path: str, written: str) -> str:
    if path == written:
        return path
    given = GivenPath(path)
    given.written = written
    return given


def _line(text: str) -> str:
    if control := find_control(text):
        raise ValueError(f"holds the control character {control}")
    return text


def _literal(text: str, info: ValidationInfo) -> str:
    if "${" in text and not (info.context and info.context.get(KEEP_UNSET)):
        raise ValueError("holds ${, but variables of the environment stand in paths alone")
    return text


def _without_ending(path: str) -> str:
    """The prefix of a pair, of which either file may be named; what comes out comes out of itself again."""
    prefix = re.sub(r"\.(bin|idx)\Z", "", path)
    if re.search(r"\.(bin|idx)\Z", prefix):
        raise ValueError(f"{prefix!r} ends as a file of a pair does, and can't be told from one; rename the pair")
    return _stored_as(prefix, re.sub(r"\.(bin|idx)\Z", "", getattr(path, "written", path)))


Positive = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Line = Annotated[str, AfterValidator(_line), AfterValidator(_literal)]
FilePath = Annotated[
    str,
    AfterValidator(_expanded),  # ${NAME}, ${NAME:-default}, and ~ for the home; $${ stands for ${
    AfterValidator(_line),
    PlainSerializer(lambda path: getattr(path, "written", path), return_type=str),
]
PairPrefix = Annotated[FilePath, AfterValidator(_without_ending)]


class Section(BaseModel):
    """A part of the recipe: frozen, and any key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_number_is_true(cls, given: object) -> object:
        """pydantic would take `true` for 1."""
        if not isinstance(given, dict):
            return given
        wrong = [name for name, value in given.items() if type(value) is bool and name in _numbers(cls)]
        return given | {name: str(given[name]).lower() for name in wrong}


@cache
def _numbers(section: type[Section]) -> set[str]:
    """Fields of a section that take a number, and no truth value."""
    kinds = {name: kinds_in(field.annotation) for name, field in section.model_fields.items()}
    return {name for name, types in kinds.items() if types & {int, float} and bool not in types}


def kinds_in(annotation: object) -> set:
    """An annotation and all that it is made of."""
    return {annotation}.union(*map(kinds_in, get_args(annotation)))


def check_unique(what: str, names: Iterable[str]) -> None:
    """Raises ValueError that tells which of `names` come more than once."""
    if twice := more_than_once(names):
        raise ValueError(f"{what} must be unique; more than once: {', '.join(twice)}")
