"""A script's variables, with what is not known of them.

A value is a text. Where a part of it is not known, a mark of noncharacters stands there (`read_script` takes them out
of the script itself): of a variable that nothing sets, of what only a run would tell, of a word that may or may not be
there. Marks go through expansions, word splitting and other shells as letters do.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

_UNSET, _UNKNOWN, _MAYBE, _END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
MARKS = re.compile(f"[{_UNSET}-{_END}]")
_MAYBES = re.compile(f"{_MAYBE}(\\d+){_END}")
_MAYBE_PARTS = re.compile(f"((?:{_MAYBE}\\d+{_END})+)([^\\s{_MAYBE}]*)")
_UNSETS = re.compile(f"{_UNSET}(\\w+){_END}")
_OPEN = re.compile(f"[{_UNSET}{_UNKNOWN}](\\w*){_END}")
_BASH_SETS = re.compile(
    "BASH\\w*|S?RANDOM|SECONDS|LINENO|EPOCH\\w+|E?UID|PPID|HOSTNAME|(?:OLD)?PWD|SHLVL|(?:OS|HOST|MACH)TYPE|PATH|TERM|"
    "FUNCNAME|PIPESTATUS|DIRSTACK|GROUPS|OPT(?:IND|ERR|ARG)|REPLY|MAPFILE|COLUMNS|LINES|PS4|SHELL|IFS|_|COPROC"
)
ARGUMENTS = "@"
"""The script's own, as an array beside the others."""

Value = str | list[str]


def unset(name: str) -> str:
    """Of a variable that nothing sets: the recipe takes it from the environment."""
    return f"{_UNSET}{name}{_END}"


def unknown(name: str = "") -> str:
    """What only a run would tell; `name` where it is a variable's whole value."""
    return f"{_UNKNOWN}{name}{_END}"


def is_known(value: Value) -> bool:
    return not MARKS.search(value if isinstance(value, str) else "".join(value))


def decided(text: str) -> str | None:
    """The text with nothing for variables that are not set; None where a part of it is not known."""
    return None if _UNKNOWN in text or _MAYBE in text else _UNSETS.sub("", text)


def settled(name: str, value: Value) -> Value:
    """The value as the variable holds it: one word that is not known is `${NAME}` from here on."""
    if isinstance(value, list) or re.search(r"\s", value) or not re.search(rf"{_UNKNOWN}|{_UNSET}\d", value):
        return value
    return unset(name) if re.fullmatch(rf"{_UNSET}\d+{_END}", value) else unknown(name)


def unset_names(text: str) -> list[str]:
    return _UNSETS.findall(text)


def maybes(word: str) -> set[int]:
    """Numbers of the decisions by which the word is there."""
    return {int(number) for number in _MAYBES.findall(word)}


def under(word: str, present: set[int]) -> str | None:
    """The word where the decisions `present` came to pass; None where nothing is left of it."""
    kept = _MAYBE_PARTS.sub(lambda part: part[2] if maybes(part[1]) <= present else "", word)
    return kept if kept.strip() or maybes(word) <= present else None


def flags(value: Value | None) -> list[str]:
    """Names of the arguments in a value."""
    text = value if isinstance(value, str) else " ".join(value or [])
    return list(dict.fromkeys(re.findall(r"(?<![^\s'\"])--[A-Za-z][\w-]*", plain(text))))


def holds_text(value: Value | None) -> bool:
    """Whether something of the value is known."""
    return bool(_OPEN.sub("", value if isinstance(value, str) else "".join(value or [])))


def plain(text: str) -> str:
    """The text as a recipe has it: `${NAME}`, `$1` and `$(...)` for what is not known."""

    def shown(match: re.Match) -> str:
        name = match.group(1)
        return "$(...)" if not name else f"${name}" if name.isdecimal() else f"${{{name}}}"

    return _OPEN.sub(shown, _MAYBES.sub("", text))


def blend(ours: list[str], theirs: list[str], number: Callable[[], int]) -> list[str]:
    """Both lists as one: what differs between their common beginning and end is marked, by a number for each list."""
    head = _alike(ours, theirs)
    tail = _alike(ours[head:][::-1], theirs[head:][::-1])
    both = ours[:head]
    for one in (ours, theirs):
        middle = one[head : len(one) - tail]
        mark = f"{_MAYBE}{number()}{_END}" if middle else ""
        both += [re.sub(r"(\S+)", mark + r"\1", text) or mark for text in middle]
    return both + ours[len(ours) - tail :]


def _alike(ours: list[str], theirs: list[str]) -> int:
    """How many elements both begin with."""
    return next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )


@dataclass
class State:
    """What a script's commands change. Lists are replaced, never changed in place, so that copies are cheap."""

    values: dict[str, Value] = field(default_factory=lambda: {ARGUMENTS: []})
    exported: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)
    """Variables that are not known whatever is assigned."""
    fixed: set[str] = field(default_factory=set)
    """Variables that can't be assigned again."""
    functions: dict = field(default_factory=dict)
    """Bodies by name; None for one that is not known."""
    local: list[dict[str, Value | None]] = field(default_factory=list)
    """By call, the values that `local` covers."""
    blind: bool = False
    """Whether something that is not read may have set any variable, or made any function."""
    words: list[str] = field(default_factory=list)
    rank: tuple = ()
    """Of the command that trains, as far as it was met."""

    def copy(self) -> "State":
        return replace(
            self,
            values=dict(self.values),
            exported=set(self.exported),
            never=set(self.never),
            fixed=set(self.fixed),
            functions=dict(self.functions),
            local=[dict(call) for call in self.local],
        )

    def get(self, name: str) -> Value | None:
        """None for a variable that is not set; any name may be asked for."""
        if name in self.values:
            return self.values[name]
        return unknown(name) if self.blind or _BASH_SETS.fullmatch(name) else None

    def put(self, name: str, value: Value) -> None:
        fixed = name in self.never | self.fixed or (_BASH_SETS.fullmatch(name) and name != "IFS")
        self.values[name] = unknown(name) if fixed else settled(name, value)

    def forget(self, name: str) -> None:
        """The variable's value is not known from here on."""
        self.values[name] = unknown("" if name == ARGUMENTS else name)

    def unset(self, name: str) -> None:
        covered = any(name in call for call in self.local[:-1])  # what it covers in a caller comes to light
        if covered or self.blind or name in self.never:
            self.forget(name)
        else:
            self.values.pop(name, None)

    def cover(self, name: str) -> None:
        """Makes a variable of the function that runs."""
        if self.local and name not in self.local[-1]:
            self.local[-1][name] = self.values.pop(name, None)

    def uncover(self) -> None:
        for name, value in self.local.pop().items():
            if value is None:
                self.values.pop(name, None)
            else:
                self.values[name] = value

    def join(self, other: "State", number: Callable[[], int]) -> dict[str, list[str]]:
        """Becomes what it may be where either this or `other` came to pass.

        Returns the names no longer known, each with the arguments that it held.
        """
        lost: dict[str, list[str]] = {}
        for name in self.values.keys() | other.values.keys():
            ours, theirs = self.values.get(name), other.values.get(name)
            if ours != theirs:
                both = _either(ours, theirs, number)
                self.forget(name) if both is None else self.put(name, both)
                if self.values[name] == unknown(name) and (holds_text(ours) or holds_text(theirs)):
                    lost[name] = [*flags(ours), *flags(theirs)]
        for name in self.functions.keys() | other.functions.keys():
            if self.functions.get(name) != other.functions.get(name):
                self.functions[name] = None
        for own, others in zip(self.local, other.local, strict=False):
            own.update({name: unknown(name) for name in own.keys() ^ others.keys()})
        self.exported &= other.exported
        self.never |= other.never | (self.fixed ^ other.fixed)
        self.blind |= other.blind
        self.join_command(other, number)
        return lost

    def join_command(self, other: "State", number: Callable[[], int]) -> None:
        if self.words != other.words:
            if self.rank[:2] == other.rank[:2]:
                self.words = blend(self.words, other.words, number)
            elif other.rank > self.rank:
                self.words = other.words
            self.rank = max(self.rank, other.rank)


def _either(ours: Value | None, theirs: Value | None, number: Callable[[], int]) -> Value | None:
    """Both values as one where they hold arguments, the words that differ marked; None where they hold none."""
    whole = isinstance(ours, list) or isinstance(theirs, list)
    if not flags(ours) and not flags(theirs):
        return None
    both = blend(_parts(ours, whole), _parts(theirs, whole), number)
    return both if whole else "".join(part if part[:1].isspace() else f" {part}" for part in both).removeprefix(" ")


def _parts(value: Value | None, whole: bool) -> list[str]:
    if isinstance(value, list):
        return value
    return [value] if whole and value else re.findall(r"\s*\S+|\s+", value or "")
