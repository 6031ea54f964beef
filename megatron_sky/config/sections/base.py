"""What the sections of a recipe have in common: frozen models, and kinds of values."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
FilePath = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the home


def _without_ending(path: str) -> str:
    """The prefix of a pair, of which either file may be named; what comes out comes out of itself again."""
    prefix = re.sub(r"\.(bin|idx)\Z", "", path)
    if re.search(r"\.(bin|idx)\Z", prefix):
        raise ValueError(f"{prefix!r} ends as a file of a pair does, and can't be told from one; rename the pair")
    return prefix


PairPrefix = Annotated[FilePath, AfterValidator(_without_ending)]


class Section(BaseModel):
    """A part of the recipe: frozen, and any key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
