"""Megatron-LM's arguments as flags with values, and what a value is that they do not tell."""

import itertools
import math
import re
import shlex
from collections.abc import Callable, Sequence
from typing import TypeGuard

NOT_COMPUTED = r"\$\(|\$\d"
"""What in a word stands for a value that only a run of the script, or its own arguments, would tell."""
OPEN = NOT_COMPUTED + r"|\$\{"
VARIABLE = re.compile(r"\$\{\w+\}")

_SWITCH = re.compile("no-|use-|log-|check-|enable-|reset-|apply-")
"""How arguments without a value begin, of those that the recipe does not take."""


class Untold(Exception):
    """A value that neither the arguments nor Megatron-LM's defaults tell; says why."""


class Arguments:
    """Flags with their values; each that is asked for is noted, so that nothing goes unreported."""

    def __init__(self, words: Sequence[str]):
        self.given = parse(words)
        self.leading = list(itertools.takewhile(lambda word: not _is_flag(word), words))
        self.used: set[str] = set()
        self.read: dict[str, int] = {}  # how many of a flag's values its translation looks at

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given."""
        return any([self.values(name) is not None for name in names])

    def values(self, name: str) -> list[str] | None:
        if name in self.given:
            self.used.add(name)
        return self.given.get(name)

    def several(self, name: str, kind: Callable = str) -> list:
        """All values of the flag; a variable stays the text it is, and what is no `kind` is an `Untold`."""
        values = self.values(name) or []
        self.read[name] = len(values)
        return [_told(name, text, kind) for text in values]

    def one(self, name: str, kind: Callable = str, default: object = None):
        """The flag's value, as one of `several`; `default` where the flag is not given."""
        if self.values(name) is None:
            return default
        value = next(iter(self.several(name, kind)), Untold(f"--{name} has no value"))
        self.read[name] = 1
        return value

    def asked(self, name: str, kind: Callable = str):
        """The flag's value; an `Untold` where it is not given."""
        return self.one(name, kind, Untold(f"--{name} is not given"))

    def open_words(self) -> list[tuple[str, str]]:
        """(word, where it stands) of those that are not known and are no flag's value: they may hold arguments."""
        places = [("before the first argument", self.leading)]
        for name, values in self.given.items():
            own = self.read.get(name, 0 if name in self.used or _SWITCH.match(name) else 1)
            places.append((f"after --{name}", values[own:]))
        return [(word, where) for where, words in places for word in words if re.search(OPEN, word)]

    def number(self, name: str, kind: Callable, default: object = None):
        """The flag's value to reckon with; raises Untold where the arguments leave it open."""
        return known(name, self.asked(name, kind) if default is None else self.one(name, kind, default))


def _told(name: str, text: str, kind: Callable) -> object:
    if re.search(NOT_COMPUTED, text):
        return Untold(f"--{name} {text} is not computed")
    if "${" in text:
        return text
    try:
        return kind(text)
    except ValueError:
        return Untold(f"--{name} {text} is no number")


def known(name: str, value: object):
    if isinstance(value, Untold):
        raise value
    if isinstance(value, str):
        raise Untold(f"is reckoned from --{name} {value}, which the script does not set")
    return value


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def parse(words: Sequence[str]) -> dict[str, list[str]]:
    """`--name value...` and `--name=value`; the last of a name counts, words before the first are dropped."""
    given: dict[str, list[str]] = {}
    name = None
    for word in words:
        if _is_flag(word):
            name, equals, value = word[2:].partition("=")
            given[name] = [value] if equals else []
        elif name is not None:
            given[name].append(word)
    return given


def split_launcher(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(the launcher's own flags, the arguments of the training script); all are the latter where no script is named."""
    at = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        return {}, list(words)
    launcher = {name.replace("-", "_"): value for name, value in parse(words[:at]).items()}
    return launcher, list(words[at + 1 :])


def split_words(text: str) -> list[str]:
    """Words of one that is several, as a blend in quotes is; quotes inside are taken off."""
    try:
        return shlex.split(text)
    except ValueError:  # a lone quote, as in a tokenizer's pattern
        return text.split()


def number_or_variable(given: dict[str, list[str]], name: str) -> int | str | None:
    """A number, or the variable that stands for it; None for gpu, auto and the like."""
    text = (given.get(name) or [""])[0]
    return text if VARIABLE.fullmatch(text) else int(text) if text.isdecimal() else None


def is_number(text: object) -> TypeGuard[str | float]:
    try:
        return isinstance(text, str | int | float) and math.isfinite(float(text))
    except ValueError:
        return False
