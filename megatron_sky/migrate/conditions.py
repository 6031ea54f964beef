"""The value of `[ ... ]`, `[[ ... ]]` and `test`: true, false, or None where it is not decided."""

import operator
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

_NUMBERS = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-gt": operator.gt,
    "-ge": operator.ge,
    "-lt": operator.lt,
    "-le": operator.le,
}
_BINARY = (*_NUMBERS, "=", "==", "!=", "=~", "<", ">", "-nt", "-ot", "-ef")


@dataclass(frozen=True)
class Operand:
    """`text` is None where it is not known; so is `pattern`, what fnmatch takes for it after = and !=."""

    text: str | None
    pattern: str | None


def operand(word: str | None) -> Operand:
    """One that is no pattern."""
    return Operand(word, None if word is None else re.sub(r"([*?[])", r"[\1]", word))


def operand_or_sign(word: str | None) -> Operand | str:
    """Of a word of `test`."""
    signs = (*_BINARY, "-a", "-o", "!", "(", ")")
    return word if word is not None and (word in signs or re.fullmatch("-[a-zA-Z]", word)) else operand(word)


def judge(items: list[Operand | str]) -> bool | None:
    """Of operands, and of signs as plain texts."""
    if len(items) == 4 and items[0] == "!" and items[2] in ("-o", "-a"):  # of `test`: it turns all of it around
        result = judge(items[1:])
        return None if result is None else not result
    items = list(items)
    result = _joined(items, ("||", "-o"), ("&&", "-a"))
    return None if items else result  # what is left over has no meaning


def _joined(items: list, *levels: tuple[str, str]) -> bool | None:
    """Parts joined by the signs of the first level, each of parts joined by those of the next."""
    if not levels:
        return _one(items)
    decides = levels[0][0] == "||"  # the result that one part is enough for
    result = _joined(items, *levels[1:])
    while items and items[0] in levels[0]:
        del items[0]
        other = _joined(items, *levels[1:])
        result = decides if decides in (result, other) else None if None in (result, other) else not decides
    return result


def _one(items: list) -> bool | None:
    if len(items) > 2 and items[1] in _BINARY:
        left, sign, right = items[:3]
        del items[:3]
        return _compare(operand(left) if isinstance(left, str) else left, sign, right)
    if not items:
        return False
    first = items.pop(0)
    if isinstance(first, Operand):
        return None if first.text is None else first.text != ""
    if first == "!" and items:
        result = _one(items)
        return None if result is None else not result
    if first == "(":
        result = _joined(items, ("||", "-o"), ("&&", "-a"))
        return result if items and items.pop(0) == ")" else None
    if not items:
        return True  # a sign alone is a text like any other
    of = items.pop(0)
    known = first in ("-z", "-n") and isinstance(of, Operand) and of.text is not None
    return (of.text == "") == (first == "-z") if known else None


def _compare(left: Operand, sign: str, right: Operand | str) -> bool | None:
    right = operand(right) if isinstance(right, str) else right
    if left.text is None or right.text is None:
        return None
    if sign in ("=", "==", "!="):
        return None if right.pattern is None else fnmatchcase(left.text, right.pattern) == (sign != "!=")
    whole = re.fullmatch(r"(-?\d+) (-?\d+)", f"{left.text} {right.text}")
    return _NUMBERS[sign](int(whole[1]), int(whole[2])) if whole and sign in _NUMBERS else None
