"""The arguments that a launch script would start a training with, without running any of it.

Followed are assignments of variables and arrays, conditions on their values, `case`, functions, loops over words that
are known, and what `bash -c`, `eval` or a here document hand to another shell. Of the commands that carry arguments the
last that trains is taken. Commands are never executed: a `$(...)` or a test of a file is told in `notes` and passed
over. A variable that nothing sets, or whose value only a run would tell, stays as `${NAME}`, which a recipe reads from
the environment.
"""

import ast
import contextlib
import fnmatch
import operator
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from megatron_sky.migrate import syntax
from megatron_sky.migrate.syntax import ASSIGNMENT, Array, Heredoc, Node, Test, Token

NOT_COMPUTED = r"\$\(|\$\d"
"""What in a word stands for a value that only a run of the script, or its own arguments, would tell."""
_OPEN = "\ue000"  # stands for the $ of what is not known, so that another shell that reads it expands nothing
_UNKNOWN = "\ue001"  # stands for a whole expansion
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?!$]")
_EXPANSION = re.compile(r"(\w+|[@*#?!$])(?:\[([@*]|\d+)\])?(?:(:?[-=+?])(.*)|:(\d+))?", re.S)
_REMOVAL = re.compile(r"(\w+)(##?|%%?)(.*)", re.S)
_UNSET = re.compile(_OPEN + r"\{(\w+)\}")
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: lambda a, b: a - b * _quotient(a, b),
    ast.Div: lambda a, b: _quotient(a, b),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
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
_SHELLS = ("bash", "sh", "zsh")
_LONGEST = 100_000  # characters of a variable's value
_TURNS = 1000  # of all loops and calls of a script, after which they are not followed

_RAN = "ran"  # the status of a command that is taken to have succeeded
Status = bool | str | None  # True and False of a test, None of one that is not decided, _RAN


@dataclass
class Script:
    """What was read: the words of the command that trains, the variables, and what could not be followed."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_script(text: str, arguments: Sequence[str] = ()) -> Script:
    """Follows `text` as bash would with `arguments` as $1, $2 ..."""
    reader = _Reader(list(arguments))
    with contextlib.suppress(_Exit):
        reader.run(syntax.parse(text))
    reader.tell_late_variables()
    script = reader.script
    script.words = [_plain(word) for word in script.words]
    script.variables = {name: _plain(value) for name, value in script.variables.items()}
    return script


def _plain(text: str) -> str:
    return text.replace(_OPEN, "$").replace(_UNKNOWN, "$(...)")


def split_words(text: str) -> list[str]:
    """Words of an expanded value; quotes that an array's element carried inside are taken off."""
    try:
        return shlex.split(text)
    except ValueError:  # a lone quote, as in a tokenizer's pattern
        return text.split()


class _Exit(Exception):
    """The script's own end, after the command that trains."""


class _Reader:
    def __init__(self, arguments: list[str]):
        self.script = Script()
        self.variables = self.script.variables
        self.arrays: dict[str, list[str]] = {}
        self.arguments = arguments
        self.functions: dict[str, Node] = {}
        self.uncomputed: set[str] = set()
        self.turns = 0
        self.rank: tuple = ()

    def note(self, text: str) -> None:
        if text not in self.script.notes:
            self.script.notes.append(text)

    def tell_late_variables(self) -> None:
        for name in sorted(set(_UNSET.findall(" ".join(self.script.words)))):
            if name in self.variables:
                self.note(f"{name} is set only after it is used")

    # Commands

    def run(self, nodes: list[Node]) -> Status:
        status: Status = _RAN
        for node in nodes:
            status = self.step(node)
        return status

    def step(self, node: Node) -> Status:
        match node:
            case syntax.Simple():
                return self.simple(node.tokens)
            case syntax.Joined():
                return self.joined(node.parts)
            case syntax.Not():
                status = self.step(node.node)
                return not status if isinstance(status, bool) else None
            case syntax.Group():
                return self.run(node.body)
            case syntax.If():
                return self.choose(node)
            case syntax.Case():
                return self.case(node)
            case syntax.Loop():
                return self.loop(node)
            case syntax.Function():
                self.functions[node.name] = node.body
                return _RAN

    def joined(self, parts: list[tuple[str, Node]]) -> Status:
        status: Status = _RAN
        for number, (sign, node) in enumerate(parts):
            if sign in ("", "|", "|&"):
                status = self.step(node)
            elif status is None and _is_test(node):
                one = self.step(node)
                status = one if one is (sign == "||") else None
            elif status is None:
                self.undecided([syntax.Joined(parts[:number])])
            elif (sign == "&&") == (status is not False):
                status = self.step(node)
        return status

    def undecided(self, condition: list[Node]) -> None:
        self.note(f"the condition `{syntax.shown(condition)}` is not decided")

    def choose(self, node: syntax.If) -> Status:
        for condition, body in node.branches:
            status = True if condition is None else self.run(condition)
            if status is True:
                return self.run(body)
            if status is not False:
                self.undecided(condition or [])
        return _RAN

    def case(self, node: syntax.Case) -> Status:
        subject = self.decided(node.subject)
        if subject is None:
            self.note(f"a `case` of {node.subject} is not decided")
            return None
        for patterns, body in node.branches:
            if any(fnmatch.fnmatchcase(subject, self.text(pattern)) for pattern in patterns):
                return self.run(body)
        return _RAN

    def loop(self, node: syntax.Loop) -> Status:
        if node.kind == "for" and self.loop_over(node):
            return _RAN
        tests = len(node.head) == 1 and _is_test(node.head[0])
        if node.kind == "while" and tests:
            status = self.run(node.head)
            while status is True and self.turn():
                self.run(node.body)
                status = self.run(node.head) if syntax.shown(node.head) not in ("true", ":") else False
            if status is False:
                return _RAN
        if node.kind in ("while", "until") and not syntax.shown(node.head).startswith("read "):
            self.note(f"a `{node.kind}` is read as if it turned once")
            self.run([*node.head, *node.body])
        else:
            self.note(f"a `{node.kind}` is not followed")
        return None

    def loop_over(self, node: syntax.Loop) -> bool:
        """Whether `for NAME in WORDS` could be followed: its words are known."""
        tokens = node.head[0].tokens if node.head and isinstance(node.head[0], syntax.Simple) else []
        if len(tokens) < 2 or tokens[1] != "in" or not all(isinstance(token, str) for token in tokens):
            return False
        words = [word for token in tokens[2:] for word in self.fields(token)]
        if any(re.search(rf"[*?[{{{_OPEN}{_UNKNOWN}]", word) for word in words):
            return False
        for word in words:
            if not self.turn():
                return False
            self.put(tokens[0], word)
            self.run(node.body)
        return True

    def turn(self) -> bool:
        """Counts a turn of a loop, or a call; False when it is one too many."""
        self.turns += 1
        return self.turns <= _TURNS

    def simple(self, tokens: list[Token]) -> Status:
        """Assignments at the front take effect; what remains is a command."""
        rest = self.assignments([token for token in tokens if not isinstance(token, Heredoc)])
        if rest and isinstance(rest[0], Test):
            return self.all_of(list(rest[0].words))
        raw = [token for token in rest if isinstance(token, str)]
        if not raw:
            return _RAN
        if raw[0] in ("[", "test"):
            return self.all_of(raw[1 : -1 if raw[0] == "[" else None])
        if raw[0].startswith("(("):
            value = self.compute(raw[0][2:-2])
            return None if value is None else value != 0
        words = [word for token in raw for word in self.fields(token)]
        return self.command(words, next((token for token in tokens if isinstance(token, Heredoc)), None))

    def assignments(self, tokens: list[Token]) -> list[Token]:
        declares = exports = False
        for number, token in enumerate(tokens):
            if isinstance(token, Array):
                self.assign_array(token)
            elif token in _PREFIXES:
                declares, exports = True, exports or token == "export"
            elif isinstance(token, str) and (match := ASSIGNMENT.fullmatch(token)):
                self.assign(match.group(1), match.group(3), appends=bool(match.group(2)))
                if exports:
                    self.script.exported.add(match.group(1))
            elif not declares:  # else `declare -a`, or `export NAME`
                return tokens[number:]
        return []

    def command(self, words: list[str], document: Heredoc | None) -> Status:
        name = PurePath(words[0]).name if words else ""
        if name in ("true", "false", ":"):
            return name != "false"
        if name in self.functions and self.turn():
            return self.call(self.functions[name], words[1:])
        if name == "exit" and self.script.words:
            raise _Exit
        if name == "shift":
            del self.arguments[: int(words[1]) if words[1:] and words[1].isdecimal() else 1]
        elif name == "set" and "--" in words:
            self.arguments[:] = words[words.index("--") + 1 :]
        elif name == "unset":
            for each in words[1:]:
                self.forget(each)
        elif words[:1] in (["source"], ["."]):
            self.note(f"{' '.join(words)} is not read: give what it sets")
        elif (inner := _inner_script(words, document)) is not None and self.turn():
            return self.run(syntax.parse(inner))
        else:
            self.offer(words)
        return _RAN

    def call(self, body: Node, arguments: list[str]) -> Status:
        before, self.arguments = self.arguments, arguments
        try:
            return self.step(body)
        except RecursionError:
            self.note("a function that calls itself is not followed")
            return None
        finally:
            self.arguments = before

    def offer(self, words: list[str]) -> None:
        """Takes the command if it looks at least as much like the one that trains as those before."""
        num_flags = sum(word.startswith("--") for word in words)
        if not num_flags:
            return
        trains = any(word.endswith(".py") and "train" in PurePath(word).name for word in words)
        rank = (trains, PurePath(words[0]).name not in ("echo", "printf"), num_flags)
        if self.rank[:2] == rank[:2] == (True, True) and self.script.words != words:
            self.note("more than one command trains; of these the last with the most arguments is read")
        if rank >= self.rank:
            self.rank, self.script.words = rank, words

    # Variables

    def put(self, name: str, value: str) -> None:
        self.forget(name)
        if len(value) <= _LONGEST:
            self.variables[name] = value

    def forget(self, name: str) -> None:
        self.variables.pop(name, None)
        self.arrays.pop(name, None)
        self.uncomputed.discard(name)

    def assign(self, name: str, raw: str, *, appends: bool) -> None:
        value = self.text(raw)
        if re.search(rf"{_UNKNOWN}|{_OPEN}\d", value) and not appends and " " not in value:
            self.forget(name)  # ${NAME} stands for it
            if _UNKNOWN in value:
                self.uncomputed.add(name)
            return
        if appends:
            value = self.variables.get(name, "") + value
        self.put(name, value)

    def assign_array(self, array: Array) -> None:
        elements = [word for element in array.elements for word in self.fields(element)]
        if array.appends and array.name in self.variables:
            elements = [*self.arrays.get(array.name, [self.variables[array.name]]), *elements]
        self.put(array.name, " ".join(elements))
        if array.name in self.variables:
            self.arrays[array.name] = elements

    def text(self, raw: str) -> str:
        """The word with its variables filled in and its quotes off, as one text."""
        return "".join(text for text, _ in self.pieces(raw))

    def fields(self, raw: str) -> list[str]:
        """The words that a word becomes: what is not quoted falls apart at spaces."""
        words: list[str] = []
        open_word = False  # whether the next piece goes on with the last word
        for text, whole in self.pieces(raw):
            if text is _BETWEEN:
                open_word = False
                continue
            parts = [text] if whole else split_words(text)
            if not whole and text[:1].isspace():
                open_word = False
            for number, part in enumerate(parts):
                if open_word and number == 0:
                    words[-1] += part
                else:
                    words.append(part)
                open_word = True
            if not whole and text[-1:].isspace():
                open_word = False
        return words

    def pieces(self, raw: str) -> list[tuple[str, bool]]:
        """(text, whether it is quoted or literal) of a word, one after the other."""
        out: list[tuple[str, bool]] = []
        at, quoted = 0, False
        while at < len(raw):
            char = raw[at]
            if char == "\\" and at + 1 < len(raw):
                escaped = raw[at + 1]
                kept = "\\" + escaped if quoted and escaped not in '$`"\\\n' else escaped
                out.append((" " if escaped == "\n" else kept, True))
                at += 2
            elif char == "'" and not quoted:
                end = raw.find("'", at + 1)
                out.append((raw[at + 1 : end if end >= 0 else len(raw)], True))
                at = len(raw) if end < 0 else end + 1
            elif char == '"':
                quoted = not quoted
                if quoted and not re.match(r'"\$(@|\{@\}|\{\w+\[@\]\})"', raw[at:]):
                    out.append(("", True))  # "" is a word too
                at += 1
            elif char == "$":
                end = _end_of_expansion(raw, at)
                out += self.expansion(raw[at:end], quoted)
                at = end
            elif char == "`":
                end = raw.find("`", at + 1)
                end = end + 1 if end >= 0 else len(raw)
                out.append((self.unknown(raw[at:end]), True))
                at = end
            else:
                out.append((char, True))
                at += 1
        return out

    def expansion(self, raw: str, quoted: bool) -> list[tuple[str, bool]]:
        """Pieces of `$NAME` and the like; the elements of `${NAME[@]}` and `$@` are words of their own."""
        match = re.fullmatch(r"\$(?:\{(\w+)\[@\]\}|([@*])|\{([@*])(?::(\d+))?\})", raw)
        if match is None or (match.group(1) in self.variables and match.group(1) not in self.arrays):
            return [(self.value(raw), quoted)]
        name, start = match.group(1), max(int(match.group(4) or 1), 1) - 1
        if name and name not in self.arrays:
            self.note(f"the array {name} is set nowhere")  # an environment holds no arrays
        elements = self.arrays.get(name, []) if name else self.arguments[start:]
        return [piece for each in elements for piece in ((each, quoted), (_BETWEEN, quoted))][:-1]

    def value(self, expansion: str) -> str:
        """Of `$NAME`, `${NAME...}`, `$((...))` or `$(...)`."""
        if expansion == "$":
            return "$"
        if expansion.startswith("$((") and expansion.endswith("))"):
            result = self.compute(expansion[3:-2])
            return self.unknown(expansion) if result is None else str(result)
        if expansion.startswith("$("):
            return self.unknown(expansion)
        inner = expansion[2:-1] if expansion.startswith("${") else expansion[1:]
        match = _EXPANSION.fullmatch(inner)
        if match is None:
            return self.removal(expansion, inner)
        name, index, sign, word, _ = match.groups()
        known = self.lookup(name, index)
        empty = known is None or (known == "" and (sign or "").startswith(":"))
        if sign and sign.endswith("+"):
            return "" if empty else self.text(word)
        if sign and empty and not sign.endswith("?"):
            filled = self.text(word)
            if sign.endswith("="):
                self.put(name, filled)
            return filled
        if known is None:
            return f"{_OPEN}{name}" if name.isdecimal() else f"{_OPEN}{{{name}}}"
        return known

    def removal(self, expansion: str, inner: str) -> str:
        """Of `${NAME#PATTERN}`, `##`, `%` and `%%`: without the shortest or longest beginning or end like PATTERN."""
        match = _REMOVAL.fullmatch(inner)
        known = self.lookup(match.group(1), None) if match else None
        if match is None or known is None or re.search(f"[{_OPEN}{_UNKNOWN}]", known):
            return self.unknown(expansion)
        _, sign, pattern = match.groups()
        pattern = self.text(pattern)
        starts, cuts = sign[0] == "#", range(len(known) + 1)
        ends = [known[:cut] if starts else known[len(known) - cut :] for cut in cuts]
        fits = [cut for cut in cuts if fnmatch.fnmatchcase(ends[cut], pattern)]
        cut = 0 if not fits else fits[0] if len(sign) == 1 else fits[-1]
        return known[cut:] if starts else known[: len(known) - cut]

    def lookup(self, name: str, index: str | None) -> str | None:
        if name.isdecimal():
            return self.arguments[int(name) - 1] if 0 < int(name) <= len(self.arguments) else None
        if name in "@*":
            return " ".join(self.arguments)
        if name in "#?!$":
            return str(len(self.arguments)) if name == "#" else ""
        if index and index.isdecimal():
            elements = self.arrays.get(name)
            return elements[int(index)] if elements and int(index) < len(elements) else None
        return self.variables.get(name)

    def compute(self, text: str) -> int | None:
        """Of whole numbers; None where a variable is not set, or an operator is not known."""
        filled = re.sub(rf"{_OPEN}\{{\w+\}}|{_OPEN}\d|[A-Za-z_]\w*", self.operand, self.text(text.strip()))
        for sign, word in (("&&", " and "), ("||", " or ")):
            filled = filled.replace(sign, word)
        try:
            return _compute(ast.parse(re.sub(r"!(?!=)", " not ", filled).strip(), mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError, KeyError):
            return None

    def operand(self, match: re.Match) -> str:
        value = self.variables.get(match.group(0), "?")
        return value if re.fullmatch(r"-?\d+", value) else "?"

    def unknown(self, expansion: str) -> str:
        self.note(f"{expansion} is not computed")
        return _UNKNOWN

    # Conditions

    def all_of(self, words: list[str]) -> bool | None:
        """Of `A && B || C` within one test, && before ||; None where a part is no comparison of values."""
        results: list[bool | None] = []
        for part in _split(words, ("||", "-o")):
            ones = [self.test(each) for each in _split(part, ("&&", "-a"))]
            results.append(False if False in ones else None if None in ones else True)
        return True if True in results else None if None in results else False

    def test(self, words: list[str]) -> bool | None:
        if words[:1] == ["!"]:
            opposite = self.test(words[1:])
            return None if opposite is None else not opposite
        values = [self.decided(word) for word in words]
        if None in values:
            return None
        if len(values) == 1:
            return values[0] != ""
        if len(values) == 2 and words[0] in ("-z", "-n"):
            return (values[1] == "") == (words[0] == "-z")
        if len(values) == 3:
            left, sign, right = values
            if sign in ("==", "=", "!="):
                plain = words[2][:1] in ("'", '"')
                equal = left == right if plain else fnmatch.fnmatchcase(left, right)
                return equal == (sign != "!=")
            if sign in _COMPARISONS and re.fullmatch(r"-?\d+", left) and re.fullmatch(r"-?\d+", right):
                return _COMPARISONS[sign](int(left), int(right))
        return None

    def decided(self, raw: str) -> str | None:
        """The word's value, with nothing for a variable that is not set; None where only a run would tell."""
        value = self.text(raw)
        if _UNKNOWN in value or self.uncomputed & set(_UNSET.findall(value)):
            return None
        return _UNSET.sub("", re.sub(rf"{_OPEN}\d", "", value))


_BETWEEN = " \u0000"  # between two elements of an array


def _end_of_expansion(raw: str, at: int) -> int:
    if raw[at : at + 2] in ("${", "$("):
        return syntax.skip_dollar(raw, at)
    match = _NAME.match(raw, at + 1)
    return match.end() if match else at + 1


def _inner_script(words: list[str], document: Heredoc | None) -> str | None:
    """The text that a command hands to another shell: `eval`, `bash -c`, or a here document that is a script."""
    if words[:1] == ["eval"]:
        return " ".join(words[1:])
    for number, word in enumerate(words[:-2]):
        if PurePath(word).name in _SHELLS and re.fullmatch(r"-[a-z]*c", words[number + 1]):
            return words[number + 2]
    if document is None:
        return None
    starts = any(PurePath(word).name in (*_SHELLS, "sbatch") for word in words)
    return document.text.replace("\\$", "$") if starts or re.match(r"#!.*sh\b", document.text) else None


def _is_test(node: Node) -> bool:
    if isinstance(node, syntax.Not):
        return _is_test(node.node)
    first = node.tokens[0] if isinstance(node, syntax.Simple) and node.tokens else ""
    return isinstance(first, Test) or first in ("[", "test", "true", "false", ":") or str(first).startswith("((")


def _split(words: list[str], signs: tuple[str, ...]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in signs:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _compute(node: ast.expr) -> int:
    """Whole-number arithmetic; KeyError for anything else."""
    match node:
        case ast.BinOp():
            return _operator(node.op)(_compute(node.left), _compute(node.right))
        case ast.UnaryOp(op=ast.USub()):
            return -_compute(node.operand)
        case ast.UnaryOp(op=ast.Not()):
            return int(not _compute(node.operand))
        case ast.Compare(ops=[sign], comparators=[right]):
            return int(_operator(sign)(_compute(node.left), _compute(right)))
        case ast.BoolOp():
            values = [_compute(each) != 0 for each in node.values]
            return int(all(values) if isinstance(node.op, ast.And) else any(values))
        case ast.Constant(value=int() as value):
            return value
    raise KeyError(type(node).__name__)


def _operator(sign: ast.AST) -> Callable[[int, int], int]:
    return _ARITHMETIC[type(sign)]


def _quotient(a: int, b: int) -> int:
    """Towards zero, as in bash."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
