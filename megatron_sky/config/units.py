"""Counts and intervals as people write them: `2T`, `16M`, `100 steps`, `5B tokens`."""

import re
from decimal import Decimal
from typing import Annotated, Literal, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_serializer, model_validator

SCALES = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3))  # of counts, the largest first
_SUFFIX = {"": 1, "K": 10**3, "G": 10**9, **dict(SCALES)}
MAX_COUNT = 10**18
"""Of tokens: a million times what has been trained on."""
_COUNT = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]+)?)\s*([kKMBGT]?)\s*$")
_COUNT_PATTERN = r"^\s*[0-9][0-9_,]*(\.[0-9]+)?([eE][+]?[0-9]+)?\s*[kKMBGT]?\s*$"


@overload
def parse_count(value: str) -> int: ...
@overload
def parse_count(value: object) -> object: ...
def parse_count(value: object) -> object:
    """`"1.5T"` -> 1_500_000_000_000 (decimal suffixes k, M, B or G, T). What is no count is left to pydantic."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_COUNT:
        return int(value)
    if isinstance(value, str):
        match = _COUNT.match(value)
        if match is None:
            raise ValueError("must be a count: a whole number, or one with k, M, B or T, as 500_000, 16M, 1.5T")
        number, suffix = match.groups()
        plain = Decimal(number.replace("_", "").replace(",", ""))
        if plain > MAX_COUNT or plain * _SUFFIX[suffix] > MAX_COUNT:
            raise ValueError(f"must be at most {MAX_COUNT:,}")
        scaled = plain * _SUFFIX[suffix]
        if scaled != int(scaled):
            raise ValueError(f"must be a whole number; {value!r} is {scaled.normalize()}")
        return int(scaled)
    return value


def format_count(count: int | float) -> str:
    """1_500_000_000_000 -> `"1.50T"`; below 10,000 the digits themselves. For people, not for parsing back."""
    for suffix, scale in SCALES:
        if abs(count) >= scale and abs(count) >= 10_000:
            return f"{count / scale:.2f}{suffix}"
    return f"{count:g}" if isinstance(count, float) else f"{count:,}"


_COUNT_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _COUNT_PATTERN}]}

TokenCount = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=MAX_COUNT), WithJsonSchema(_COUNT_SCHEMA)]


class Interval(BaseModel):
    """How often something happens: every so many steps, or every so many consumed tokens.

    Written `"100 steps"` or `"5B tokens"`; a bare count means steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    unit: Literal["steps", "tokens"]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, dict | Interval):
            return value
        words = str(value).split()
        unit = words[1] if len(words) == 2 else "steps"
        if not 1 <= len(words) <= 2 or unit not in ("step", "steps", "token", "tokens"):
            raise ValueError('must be an interval such as "100 steps" or "5B tokens"')
        try:
            every = parse_count(words[0])
        except ValueError:
            raise ValueError('must be an interval such as "100 steps" or "5B tokens"') from None
        if every == 0:
            raise ValueError("must be at least 1; leave the interval out (null) for never")
        return {"every": every, "unit": unit.rstrip("s") + "s"}

    @model_serializer
    def __str__(self) -> str:
        return f"{self.every} {self.unit}"

    def due(self, step: int, tokens_before: int, tokens_after: int) -> bool:
        """Whether it is time after `step`, which took consumed tokens from `tokens_before` to `tokens_after`."""
        if self.unit == "steps":
            return step % self.every == 0
        return tokens_after // self.every > tokens_before // self.every


IntervalField = Annotated[
    Interval,
    WithJsonSchema({"type": "string", "pattern": r"^\s*[0-9][0-9_,]*(\.[0-9]+)?[kKMBGT]?\s+(steps?|tokens?)\s*$"}),
]
