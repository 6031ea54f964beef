"""The arguments that a launch script would start a training with, without running any of it.

Read are assignments of variables and arrays, `if` conditions on their values, and the last command that carries
arguments. Commands are never executed: a `$(...)`, a loop, a function or a test of a file is told in `notes` and passed
over. A variable that nothing sets stays as `${NAME}`, which a recipe reads from the environment.
"""

import ast
import operator
import re
import shlex
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

NOT_COMPUTED = r"\$\(|`|\$\d"
"""What in a word stands for a value that only running the script would tell."""
_WORD_ENDS = set(" \t\n;|&()")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.S)
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?]")
_SKIPPED = {"for": "done", "while": "done", "until": "done", "case": "esac"}
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-gt": operator.gt,
    "-ge": operator.ge,
    "-lt": operator.lt,
    "-le": operator.le,
}
_PREFIXES = ("export", "readonly", "local", "declare", "typeset")


@dataclass
class Script:
    """What was read: the words of the command that trains, the variables, and what could not be followed."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Array:
    """`NAME=( ... )` or `NAME+=( ... )`, its elements not yet expanded."""

    name: str
    appends: bool
    elements: tuple[str, ...]


@dataclass(frozen=True)
class _If:
    """Conditions with what follows each; an empty condition is `else`."""

    branches: list[tuple[list, list]]


@dataclass(frozen=True)
class _Unread:
    """A loop, a `case` or a function."""

    what: str


_Token = str | _Array  # an operator, "\n", a raw word with its quotes, or an array


def read_script(text: str, arguments: Sequence[str] = ()) -> Script:
    """Follows `text` as bash would with `arguments` as $1, $2 ..."""
    reader = _Reader(list(arguments))
    reader.run(_block(deque(_statements(_tokens(text.replace("\r\n", "\n"))))))
    return reader.script


def split_words(text: str) -> list[str]:
    """Words of an expanded command; quotes that an array's element carried inside are taken off."""
    try:
        return shlex.split(text)
    except ValueError:  # a lone quote, as in a tokenizer's pattern
        return text.split()


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        char = text[at]
        if text.startswith("\\\n", at):
            at += 2
        elif char in " \t":
            at += 1
        elif char == "#":
            at = _end_of_line(text, at)
        elif char in "\n;|&()":
            sign = text[at : at + 2] if text[at : at + 2] in ("&&", "||", ";;") else char
            tokens.append(sign)
            at += len(sign)
        else:
            end = _end_of_word(text, at)
            word = text[at:end]
            match = _ASSIGNMENT.fullmatch(word)
            if match and not match.group(3) and text[end : end + 1] == "(":
                elements, end = _array(text, end + 1)
                tokens.append(_Array(match.group(1), bool(match.group(2)), elements))
            else:
                tokens.append(word)
            at = end
    return tokens


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _end_of_word(text: str, at: int) -> int:
    while at < len(text) and text[at] not in _WORD_ENDS:
        if text.startswith("\\\n", at):
            return at
        at = _skip(text, at)
    return at


def _skip(text: str, at: int) -> int:
    """Past one character, or past the whole quotation or expansion that begins here."""
    char = text[at]
    if char == "\\":
        return at + 2
    if char == "'":
        end = text.find("'", at + 1)
        return len(text) if end < 0 else end + 1
    if char == '"':
        at += 1
        while at < len(text) and text[at] != '"':
            at = at + 2 if text[at] == "\\" else _skip_dollar(text, at)
        return at + 1
    return _skip_dollar(text, at)


def _skip_dollar(text: str, at: int) -> int:
    pairs = {"${": ("{", "}"), "$(": ("(", ")")}
    opening = text[at : at + 2]
    if opening not in pairs:
        return at + 1
    opens, closes = pairs[opening]
    depth, at = 1, at + 2
    while at < len(text) and depth:
        depth += (text[at] == opens) - (text[at] == closes)
        at += 1
    return at


def _array(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The raw words up to the closing bracket, and the place after it."""
    elements: list[str] = []
    while at < len(text) and text[at] != ")":
        if text.startswith("\\\n", at):
            at += 2
        elif text[at] in " \t\n;|&(":
            at += 1
        elif text[at] == "#":
            at = _end_of_line(text, at)
        else:
            end = _end_of_word(text, at)
            elements.append(text[at:end])
            at = end
    return tuple(elements), at + 1


def _statements(tokens: list[_Token]) -> list[list[_Token]]:
    """Tokens between newlines and semicolons; && and || stay within a statement, `( )` is dropped."""
    statements: list[list[_Token]] = [[]]
    for token in tokens:
        if token in ("\n", ";", ";;", "&"):
            statements.append([])
        elif token in ("then", "else", "do") and not statements[-1]:
            statements += [[token], []]
        else:
            statements[-1].append(token)
    return [statement for statement in statements if statement]


def _block(statements: deque, ends: tuple[str, ...] = ()) -> list:
    """Statements up to one that begins with a word of `ends`, each `if` with its branches as one node."""
    block: list = []
    while statements and statements[0][0] not in ends:
        statement = statements.popleft()
        first = statement[0]
        if first == "if":
            block.append(_branches(statement[1:], statements))
        elif first in _SKIPPED:
            _skip_to(_SKIPPED[first], first, statements)
            block.append(_Unread(f"a `{first}`"))
        elif first == "function" or statement[1:3] == ["(", ")"]:
            _skip_to("}", "{", statements)
            block.append(_Unread("a function"))
        elif first not in ("then", "do", "{", "}"):
            block.append(statement)
    return block


def _branches(condition: list[_Token], statements: deque) -> _If:
    branches = []
    while True:
        branches.append((condition, _block(statements, ("elif", "else", "fi"))))
        ending = statements.popleft() if statements else ["fi"]
        if ending[0] == "fi":
            return _If(branches)
        condition = ending[1:] if ending[0] == "elif" else []


def _skip_to(closing: str, opening: str, statements: deque) -> None:
    depth = 1
    while statements and depth:
        first = statements.popleft()[0]
        depth += (first == opening) - (first == closing)


def _compute(node: ast.expr) -> int:
    """Whole-number arithmetic; KeyError for anything else."""
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_compute(node.left), _compute(node.right))
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    raise KeyError(type(node).__name__)


class _Reader:
    def __init__(self, arguments: list[str]):
        self.script = Script()
        self.variables = self.script.variables
        self.variables |= {str(number): value for number, value in enumerate(arguments, 1)}

    def run(self, block: list) -> None:
        for node in block:
            if isinstance(node, _Unread):
                self.note(f"{node.what} is not followed")
            elif isinstance(node, _If):
                body = next((body for condition, body in node.branches if not condition or self.truth(condition)), [])
                self.run(body)
            else:
                self.simple(node)

    def note(self, text: str) -> None:
        if text not in self.script.notes:
            self.script.notes.append(text)

    def simple(self, statement: list[_Token]) -> None:
        """Assignments at the front take effect; what remains is a command."""
        rest = list(statement)
        exports = False
        while rest:
            token = rest[0]
            if isinstance(token, _Array):
                self.assign_array(token)
            elif token in _PREFIXES:
                exports = exports or token == "export"
            elif match := _ASSIGNMENT.fullmatch(token):
                self.assign(match.group(1), match.group(3), appends=bool(match.group(2)))
                if exports:
                    self.script.exported.add(match.group(1))
            elif token.startswith("-") and exports:
                pass  # declare -a, export -n
            else:
                break
            rest.pop(0)
        words = split_words(" ".join(self.expand(token) for token in rest if isinstance(token, str)))
        if any(word.startswith("--") for word in words) and not words[0].startswith("#"):
            before = sum(word.startswith("--") for word in self.script.words)
            if sum(word.startswith("--") for word in words) >= before:
                self.script.words = words

    def assign(self, name: str, raw: str, *, appends: bool) -> None:
        only_argument = re.fullmatch(r"\"?\$\{?([0-9]+)\}?\"?", raw)
        if only_argument and only_argument.group(1) not in self.variables:
            return  # $1 that was not given: ${NAME} stands for it
        value = self.expand(raw)
        self.variables[name] = self.variables.get(name, "") + value if appends else value

    def assign_array(self, array: _Array) -> None:
        value = " ".join(self.expand(element) for element in array.elements)
        before = f"{self.variables.get(array.name, '')} " if array.appends else ""
        self.variables[array.name] = (before + value).strip()

    def expand(self, raw: str) -> str:
        """The word with its variables filled in and its outer quotes off."""
        out: list[str] = []
        at, quoted = 0, False
        while at < len(raw):
            char = raw[at]
            if char == "\\" and at + 1 < len(raw):
                out.append(raw[at + 1])
                at += 2
            elif char == "'" and not quoted:
                end = raw.find("'", at + 1)
                out.append(raw[at + 1 : end if end >= 0 else len(raw)])
                at = len(raw) if end < 0 else end + 1
            elif char == '"':
                quoted = not quoted
                at += 1
            elif char == "$":
                end = _end_of_expansion(raw, at)
                out.append(self.value(raw[at:end]))
                at = end
            elif char == "`":
                end = raw.find("`", at + 1)
                out.append(self.unknown(raw[at : end + 1 if end >= 0 else len(raw)]))
                at = len(raw) if end < 0 else end + 1
            else:
                out.append(char)
                at += 1
        return "".join(out)

    def value(self, expansion: str) -> str:
        """Of `$NAME`, `${NAME...}`, `$((...))` or `$(...)`."""
        if expansion == "$":
            return "$"
        if expansion.startswith("$(("):
            return self.arithmetic(expansion[3:-2])
        if expansion.startswith("$("):
            return self.unknown(expansion)
        inner = expansion[2:-1] if expansion.startswith("${") else expansion[1:]
        match = re.fullmatch(r"(\w+|[@*#?])(\[[@*]\])?(?:(:?[-=+])(.*))?", inner, re.S)
        if match is None:
            return self.unknown(expansion)
        name, _, sign, word = match.groups()
        known = self.variables.get(name)
        empty = known is None or (known == "" and (sign or "").startswith(":"))
        if sign and sign.endswith("+"):
            return "" if empty else self.expand(word)
        if sign and empty:
            filled = self.expand(word)
            if sign.endswith("="):
                self.variables[name] = filled
            return filled
        if known is None:
            return "" if re.fullmatch(r"[0-9@*#?]+", name) else f"${{{name}}}"
        return known

    def arithmetic(self, text: str) -> str:
        filled = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda match: self.variables.get(match.group(1), "?"), text)
        try:
            return str(_compute(ast.parse(filled.strip(), mode="eval").body))
        except (SyntaxError, ZeroDivisionError, KeyError):
            return self.unknown(f"$(({text}))")

    def unknown(self, expansion: str) -> str:
        self.note(f"{expansion} is not computed")
        return ""

    def truth(self, condition: list[_Token]) -> bool | None:
        """Of `[[ ... ]] || [ ... ]`; None where a part is no comparison of values."""
        result: bool | None = None
        joint = ""
        part: list[str] = []
        for token in [*condition, "||"]:
            if token not in ("&&", "||"):
                part += [token] if isinstance(token, str) else []
                continue
            one = self.test(part)
            if joint == "&&":
                result = False if result is False or one is False else None if None in (result, one) else True
            elif joint == "||":
                result = True if result is True or one is True else None if None in (result, one) else False
            else:
                result = one
            joint, part = str(token), []
        if result is None:
            self.note(f"the condition `{' '.join(each for each in condition if isinstance(each, str))}` is not decided")
        return result

    def test(self, words: list[str]) -> bool | None:
        inner = [word for word in words if word not in ("[", "[[", "]", "]]", "test")]
        if inner[:1] == ["!"]:
            opposite = self.test(inner[1:])
            return None if opposite is None else not opposite
        values = [self.expand(word) for word in inner]
        values = ["" if re.fullmatch(r"\$\{\w+\}", value) else value for value in values]  # not set: empty
        if len(values) == 2 and inner[0] in ("-z", "-n"):
            return (values[1] == "") == (inner[0] == "-z")
        if len(values) == 1 and inner[0] in ("true", "false"):
            return inner[0] == "true"
        if len(values) == 3:
            left, sign, right = values
            if sign in ("==", "=", "!="):
                return (left == right) == (sign != "!=")
            if sign in _COMPARISONS and re.fullmatch(r"-?\d+", left) and re.fullmatch(r"-?\d+", right):
                return _COMPARISONS[sign](int(left), int(right))
        return None


def _end_of_expansion(raw: str, at: int) -> int:
    if raw[at : at + 2] in ("${", "$("):
        return _skip_dollar(raw, at)
    match = _NAME.match(raw, at + 1)
    return match.end() if match else at + 1
