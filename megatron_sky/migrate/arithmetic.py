"""Bash's arithmetic: its operators with their precedence, assignments among them, over whole numbers of 64 bits.

tree-sitter's grammar is no help: it binds `!`, `~` and `? :` otherwise than bash does.
"""

import operator
import re
from collections.abc import Callable

_TOKEN = re.compile(
    r"\s*(?:(\d+#\w+|0[xX][\da-fA-F]+|\d+)|([A-Za-z_]\w*)"
    r"|(<<=|>>=|\*\*|\+\+|--|&&|\|\||<<|>>|[-+*/%&^|]=|[<>=!]=|[-+*/%<>=!~&^|?:(),]))\s*"
)
_ASSIGN = ("=", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", "&=", "^=", "|=")
_LONGEST = 2000  # characters of an expression
_LARGEST = 2**62


class Unknown(Exception):
    """The value is not known, or there is none."""


def _divide(left: int, right: int) -> int:
    """Towards zero, as in bash."""
    if right == 0:
        raise Unknown
    return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)


def _power(left: int, right: int) -> int:
    if not (0 <= right < 64 and abs(left) < 2**32):
        raise Unknown
    return left**right


def _shift(left: int, right: int, way: Callable[[int, int], int]) -> int:
    if not 0 <= right < 64:
        raise Unknown
    return way(left, right)


_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "**": _power,
    "*": operator.mul,
    "/": _divide,
    "%": lambda left, right: left - right * _divide(left, right),
    "+": operator.add,
    "-": operator.sub,
    "<<": lambda left, right: _shift(left, right, operator.lshift),
    ">>": lambda left, right: _shift(left, right, operator.rshift),
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "&": operator.and_,
    "^": operator.xor,
    "|": operator.or_,
}
_LEVELS = (
    *(("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", "<=", ">", ">=")),
    *(("<<", ">>"), ("+", "-"), ("*", "/", "%"), ("**",)),
)


def evaluate(text: str, read: Callable[[str], str], assign: Callable[[str, str], None]) -> int:
    """The value of expressions between commas. `assign` is called for each variable that is set. Raises Unknown."""
    try:
        return _Expression(text, read, assign).value() if text.strip() else 0
    except RecursionError:  # signs within each other, deeper than anyone writes
        raise Unknown from None


class _Expression:
    def __init__(self, text: str, read: Callable[[str], str], assign: Callable[[str, str], None]):
        self.read, self.assign = read, assign
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or len(text) > _LONGEST:
                raise Unknown
            token, at = match[0].strip(), match.end()
            if token in ("++", "--") and not _is_name((self.tokens or [""])[-1]) and not _is_name(text[at : at + 1]):
                token, at = token[0], match.start(3) + 1  # two signs
            self.tokens.append(token)
        self.tokens.append("")

    def value(self) -> int:
        value = self.comma(True)
        if self.tokens != [""]:
            raise Unknown
        return value

    def take(self, *signs: str) -> str:
        return self.tokens.pop(0) if self.tokens[0] in signs else ""

    # `live` is False of what bash reads and does not evaluate: the way not taken of ? :, && and ||.

    def comma(self, live: bool) -> int:
        value = self.assignment(live)
        while self.take(","):
            value = self.assignment(live)
        return value

    def assignment(self, live: bool) -> int:
        name, sign = self.tokens[0], self.tokens[1] if len(self.tokens) > 1 else ""
        if not _is_name(name) or sign not in _ASSIGN:
            return self.condition(live)
        del self.tokens[:2]
        before = 0 if sign == "=" else self.variable(name, live)
        value = self.assignment(live)
        return self.set(name, value if sign == "=" else self.apply(sign[:-1], before, value, live), live)

    def condition(self, live: bool) -> int:
        value = self.binary(0, live)
        if not self.take("?"):
            return value
        first = self.comma(live and value != 0)
        if not self.take(":"):
            raise Unknown
        second = self.condition(live and value == 0)
        return first if value else second

    def binary(self, level: int, live: bool) -> int:
        if level == len(_LEVELS):
            return self.unary(live)
        value = self.binary(level + 1, live)
        while sign := self.take(*_LEVELS[level]):
            if sign in ("&&", "||"):
                other = self.binary(level + 1, live and (value != 0) == (sign == "&&"))
                value = int((value and other) != 0 if sign == "&&" else (value or other) != 0)
            else:  # ** alone groups from the right
                value = self.apply(sign, value, self.binary(level + (sign != "**"), live), live)
        return value

    def unary(self, live: bool) -> int:
        token = self.tokens.pop(0)
        step = {"++": 1, "--": -1}.get(token)
        if step and _is_name(self.tokens[0]):
            name = self.tokens.pop(0)
            value = self.set(name, self.variable(name, live) + step, live)
        elif token in ("+", "-", "!", "~"):
            value = self.unary(live)
            value = {"-": -value, "!": int(not value), "~": ~value}.get(token, value)
        elif token == "(":
            value = self.comma(live)
            if not self.take(")"):
                raise Unknown
        elif _is_name(token):
            value = self.variable(token, live)
            if sign := self.take("++", "--"):
                self.set(token, value + (1 if sign == "++" else -1), live)
        else:
            value = _number(token)
        return value

    def variable(self, name: str, live: bool) -> int:
        return _number(self.read(name).strip() or "0") if live else 0

    def set(self, name: str, value: int, live: bool) -> int:
        if live:
            self.assign(name, str(value))
        return value

    def apply(self, sign: str, left: int, right: int, live: bool) -> int:
        value = int(_OPERATORS[sign](left, right)) if live else 0
        if abs(value) > _LARGEST:  # where bash's numbers may go round
            raise Unknown
        return value


def _is_name(token: str) -> bool:
    return token[:1].isalpha() or token[:1] == "_"


def _number(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    base, _, number = digits.rpartition("#")
    try:
        value = int(number, int(base)) if base else int(digits, 8 if re.fullmatch(r"0\d+", digits) else 0)
    except ValueError:
        raise Unknown from None
    if not digits.isascii() or re.search(r"_|^0[bBoO]", digits) or abs(value) > _LARGEST or base in ("0", "1"):
        raise Unknown
    return sign * value
