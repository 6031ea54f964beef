"""Bash's arithmetic as far as Python's grammar says the same of it; anything else is not known.

tree-sitter's grammar is no help: it binds `!`, `~` and `? :` otherwise than bash does.
"""

import ast
import operator
import re
from collections.abc import Callable

_SIGNS = re.compile(r"[\w\s()+*/%<>=!&|-]*")
_NOT_ALIKE = re.compile(r"\+\+|--|(?<![=!<>])=(?!=)|<<|>>|(?<!&)&(?!&)|(?<!\|)\|(?!\|)|\d_|\b0[bBoO]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*(\*\*|[-+*/%]?)=(?!=)(.*)", re.S)
_STEP = re.compile(r"\s*(?:(\+\+|--)\s*([A-Za-z_]\w*)|([A-Za-z_]\w*)\s*(\+\+|--))\s*")
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


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Mod: lambda left, right: left - right * _divide(left, right),
    ast.Pow: _power,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(text: str, read: Callable[[str], str], assign: Callable[[str, str], None]) -> int:
    """Expressions between commas, each of which may assign; the value is the last one's. Raises Unknown."""
    value = 0
    for part in text.split(",") if text.strip() else []:
        if match := _ASSIGNMENT.fullmatch(part):
            name, sign, right = match.groups()
            value = _value(f"{name} {sign} ({right})" if sign else right, read)
        elif match := _STEP.fullmatch(part):
            before, name = match[1], match[2] or match[3]
            old = _value(name, read)
            new = old + (1 if (before or match[4]) == "++" else -1)
            assign(name, str(new))
            value = new if before else old
            continue
        else:
            value = _value(part, read)
            continue
        assign(name, str(value))
    return value


def _value(text: str, read: Callable[[str], str]) -> int:
    if not _SIGNS.fullmatch(text) or _NOT_ALIKE.search(text):
        raise Unknown
    for sign, word in ((r"&&", " and "), (r"\|\|", " or "), (r"!\s*(\w+)", r" (not \1) ")):
        text = re.sub(sign, word, text)
    try:
        return _compute(ast.parse(text.strip(), mode="eval").body, read)
    except (SyntaxError, ValueError, MemoryError):
        raise Unknown from None


def _compute(node: ast.expr, read: Callable[[str], str]) -> int:
    match node:
        case ast.BinOp() if type(node.op) in _OPERATORS:
            value = _OPERATORS[type(node.op)](_compute(node.left, read), _compute(node.right, read))
        case ast.Compare(ops=[sign], comparators=[right]) if type(sign) in _OPERATORS:
            value = int(_OPERATORS[type(sign)](_compute(node.left, read), _compute(right, read)))
        case ast.BoolOp():
            values = [_compute(one, read) != 0 for one in node.values]
            value = int(all(values) if isinstance(node.op, ast.And) else any(values))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand) if not isinstance(operand, ast.BinOp):
            value = _compute(operand, read) * (-1 if isinstance(node.op, ast.USub) else 1)
        case ast.UnaryOp(op=ast.Not()):
            value = int(not _compute(node.operand, read))
        case ast.Name() if re.fullmatch(r"\s*[-+]?(0|[1-9]\d*)\s*", read(node.id)):
            value = int(read(node.id))
        case ast.Constant() if type(node.value) is int:
            value = node.value
        case _:
            raise Unknown
    if abs(value) > _LARGEST:  # bash's numbers have 64 bits
        raise Unknown
    return value
