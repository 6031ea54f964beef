"""Bash's syntax, as far as launch scripts use it: text in, a tree of commands out.

Words stay raw, with their quotes and expansions; what they mean is `shell`'s. Redirections are dropped with their
targets; a here document stays with the command that reads it. Any text gives some tree: what has no place in bash's
grammar is passed over.
"""

import re
from collections import deque
from dataclasses import dataclass, field

_OPERATORS = ("&&", "||", ";;", "|&", "\n", ";", "|", "&", "(", ")")
_WORD_ENDS = set(" \t\n;|&()<>")
_REDIRECTION = re.compile(r"(?:\d+|\{\w+\})?(<<<|<<-|<<|<>|<&|>&|>>|>\||[<>](?!\())|(&>>?)")
_BLANK = re.compile(r"(?:[ \t]|\\\n)*")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.S)
_STRAY = {"then", "elif", "else", "fi", "do", "done", "esac", "}"}
_LOOPS = ("for", "while", "until", "select")


@dataclass(frozen=True)
class Array:
    """`NAME=( ... )` or `NAME+=( ... )`, its elements not yet expanded."""

    name: str
    appends: bool
    elements: tuple[str, ...]


@dataclass(frozen=True)
class Test:
    """The raw words of `[[ ... ]]`."""

    words: tuple[str, ...]


@dataclass(eq=False)
class Heredoc:
    """`<<END`, the lines up to END."""

    end: str
    strips_tabs: bool
    text: str = ""


Token = str | Array | Test | Heredoc  # an operator, a raw word, `((...))`, or one of the others


@dataclass(frozen=True)
class Simple:
    """Assignments, and the words of a command."""

    tokens: list[Token]


@dataclass(frozen=True)
class Joined:
    """`a && b || c`, `a | b`: commands with the sign before each; the first has none."""

    parts: list[tuple[str, "Node"]]


@dataclass(frozen=True)
class Not:
    node: "Node"


@dataclass(frozen=True)
class Group:
    """`{ ... }` or `( ... )`."""

    body: list["Node"]


@dataclass(frozen=True)
class If:
    """Conditions with what follows each; `else` has no condition."""

    branches: list[tuple[list["Node"] | None, list["Node"]]]


@dataclass(frozen=True)
class Loop:
    kind: str
    head: list["Node"]
    body: list["Node"]


@dataclass(frozen=True)
class Case:
    subject: str
    branches: list[tuple[list[str], list["Node"]]] = field(default_factory=list)


@dataclass(frozen=True)
class Function:
    name: str
    body: "Node"


Node = Simple | Joined | Not | Group | If | Loop | Case | Function


def parse(text: str) -> list[Node]:
    """The commands of a script, one after the other."""
    return _Parser(tokens(text.replace("\r\n", "\n"))).block()


def shown(nodes: list[Node]) -> str:
    """What conditions look like in the script, in short."""
    parts: list[str] = []
    for node in nodes:
        if isinstance(node, Simple):
            for token in node.tokens:
                parts.append(f"[[ {' '.join(token.words)} ]]" if isinstance(token, Test) else str(token))
        elif isinstance(node, Joined):
            parts += [part for sign, each in node.parts for part in (sign, shown([each])) if part]
        elif isinstance(node, Not):
            parts += ["!", shown([node.node])]
    return " ".join(parts)


def tokens(text: str) -> list[Token]:
    """Operators, raw words, arrays, tests and here documents, in the order of the text."""
    found: list[Token] = []
    waiting: list[Heredoc] = []  # those whose lines begin on the next line
    at = 0
    while at < len(text):
        at = _BLANK.match(text, at).end()
        if at >= len(text):
            break
        char = text[at]
        operator = next((each for each in _OPERATORS if text.startswith(each, at)), None)
        redirection = _REDIRECTION.match(text, at)
        if char == "#":
            at = _end_of_line(text, at)
        elif redirection:
            at = _redirect(text, redirection, found, waiting)
        elif text.startswith("((", at) and (end := _skip_brackets(text, at + 1)) and text[end - 2 : end] == "))":
            found.append(text[at:end])
            at = end
        elif operator:
            found.append(operator)
            at += len(operator)
            if char == "\n":
                at = _read_waiting(text, at, waiting)
        else:
            at = _word(text, at, found)
    return found


def _redirect(text: str, sign: re.Match, found: list[Token], waiting: list[Heredoc]) -> int:
    """Past the redirection's target; a here document becomes a token, to be filled with its lines."""
    at = _BLANK.match(text, sign.end()).end()
    end = _skip_brackets(text, at + 1) if text[at : at + 2] in ("<(", ">(") else _end_of_word(text, at)
    if sign.group(1) in ("<<", "<<-"):
        document = Heredoc(re.sub(r"[\"'\\]", "", text[at:end]), sign.group(1) == "<<-")
        found.append(document)
        waiting.append(document)
    return end


def _read_waiting(text: str, at: int, waiting: list[Heredoc]) -> int:
    while waiting:
        document = waiting.pop(0)
        lines: list[str] = []
        while at < len(text):
            end = _end_of_line(text, at)
            line = text[at:end].lstrip("\t") if document.strips_tabs else text[at:end]
            at = end + 1
            if line == document.end:
                break
            lines.append(line)
        document.text = "\n".join(lines)
    return at


def _word(text: str, at: int, found: list[Token]) -> int:
    end = _end_of_word(text, at)
    if end == at:  # < or > with a bracket: a process's output as a file
        end = _skip_brackets(text, at + 1)
    word = text[at:end]
    if word == "[[":
        words, end = _test(text, end)
        found.append(Test(words))
        return end
    match = ASSIGNMENT.fullmatch(word)
    if match and not match.group(3) and text[end : end + 1] == "(":
        elements, end = _array(text, end + 1)
        found.append(Array(match.group(1), bool(match.group(2)), elements))
    else:
        found.append(word)
    return end


def _test(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The words up to `]]`, where < and > compare and brackets are words, and the place after it."""
    words: list[str] = []
    while at < len(text):
        start = at
        if text.startswith("\\\n", at):
            at += 2
        elif text[at] in " \t\n":
            at += 1
        elif re.match(r"\]\](?![^\s;|&)])", text[at:]):
            return tuple(words), at + 2
        else:
            while at < len(text) and text[at] not in " \t\n":
                at = _skip(text, at)
            words.append(text[start:at])
    return tuple(words), at


def _array(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The raw words up to the closing bracket, and the place after it."""
    elements: list[str] = []
    while at < len(text) and text[at] != ")":
        end = _end_of_word(text, at)
        if text.startswith("\\\n", at):
            at += 2
        elif text[at] == "#":
            at = _end_of_line(text, at)
        elif end == at:
            at += 1
        else:
            elements.append(text[at:end])
            at = end
    return tuple(elements), at + 1


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _end_of_word(text: str, at: int) -> int:
    while at < len(text) and text[at] not in _WORD_ENDS:
        if text.startswith("\\\n", at):
            return at
        at = _skip(text, at)
    return min(at, len(text))


def _skip(text: str, at: int) -> int:
    """Past one character, or past the whole quotation or expansion that begins here."""
    char = text[at]
    if char == "\\":
        return at + 2
    if char in "'`":
        end = text.find(char, at + 1)
        return len(text) if end < 0 else end + 1
    if char == '"':
        at += 1
        while at < len(text) and text[at] != '"':
            at = at + 2 if text[at] == "\\" else skip_dollar(text, at)
        return at + 1
    return skip_dollar(text, at)


def skip_dollar(text: str, at: int) -> int:
    """Past one character, or past `${...}` or `$(...)`."""
    if text.startswith("$(", at):
        return _skip_brackets(text, at + 1)
    if not text.startswith("${", at):
        return at + 1
    depth, at = 1, at + 2
    while at < len(text) and depth:
        depth += (text[at] == "{") - (text[at] == "}")
        at += 1
    return at


def _skip_brackets(text: str, at: int) -> int:
    """Past the bracket at `at` and all up to the one that closes it, quotations whole."""
    depth, at = 1, at + 1
    while at < len(text) and depth:
        depth += (text[at] == "(") - (text[at] == ")")
        at = _skip(text, at) if text[at] in "\\'\"`" else at + 1
    return min(at, len(text))


class _Parser:
    def __init__(self, found: list[Token]):
        self.left = deque(found)

    def at(self, *signs: str) -> bool:
        return bool(self.left) and self.left[0] in signs

    def take(self, *signs: str) -> bool:
        """Steps over the next token if it is one of these."""
        here = self.at(*signs)
        if here:
            self.left.popleft()
        return here

    def block(self, *ends: str) -> list[Node]:
        """Commands up to a word of `ends`, which is left."""
        nodes: list[Node] = []
        while self.left and not self.at(*ends):
            if self.left[0] in _STRAY or (self.left[0] in _OPERATORS and not self.at("(")):
                self.left.popleft()
            else:
                nodes.append(self.joined())
        return nodes

    def joined(self) -> Node:
        parts = [("", self.command())]
        while self.at("&&", "||", "|", "|&"):
            sign = str(self.left.popleft())
            while self.take("\n"):
                pass
            parts.append((sign, self.command()))
        return Joined(parts) if len(parts) > 1 else parts[0][1]

    def command(self) -> Node:
        first = self.left[0] if self.left else ""
        if self.take("!"):
            return Not(self.command())
        if self.take("if"):
            return self.branches()
        if self.take(*_LOOPS):
            head = self.block("do")
            self.take("do")
            return Loop(str(first), head, self.closed("done"))
        if self.take("case"):
            return self.case()
        if self.take("{"):
            return Group(self.closed("}"))
        if self.take("("):
            return Group(self.closed(")"))
        if self.take("function"):
            return self.function()
        if isinstance(first, str) and list(self.left)[1:3] == ["(", ")"]:
            return self.function()
        words = []
        while self.left and self.left[0] not in _OPERATORS:
            words.append(self.left.popleft())
        return Simple(words)

    def closed(self, end: str) -> list[Node]:
        body = self.block(end)
        self.take(end)
        return body

    def branches(self) -> If:
        branches: list[tuple[list[Node] | None, list[Node]]] = []
        condition: list[Node] | None = self.closed("then")
        while True:
            branches.append((condition, self.block("elif", "else", "fi")))
            if self.take("elif"):
                condition = self.closed("then")
            elif self.take("else"):
                condition = None
            else:
                self.take("fi")
                return If(branches)

    def case(self) -> Case:
        case = Case(str(self.left.popleft()) if self.left else "")
        while self.left and not self.take("in"):
            self.left.popleft()
        while self.left and not self.take("esac"):
            patterns = []
            while self.left and not self.at(")", "esac"):
                token = self.left.popleft()
                patterns += [token] if isinstance(token, str) and token not in _OPERATORS else []
            if self.take(")"):
                case.branches.append((patterns, self.closed_case()))
        return case

    def closed_case(self) -> list[Node]:
        body = self.block(";;", "esac")
        self.take(";;")
        return body

    def function(self) -> Function:
        name = str(self.left.popleft()) if self.left else ""
        while self.take("(", ")", "\n"):
            pass
        return Function(name, self.command())
