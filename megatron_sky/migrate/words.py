"""Bash's words as texts: quotes, expansions and splitting, by the script's variables. No file is looked at.

A word comes as pieces, (text, kind): literal, quoted, of an unquoted expansion (to be split), or the border between two
elements of an array. An expansion that is not followed is not known; the variables that it may set are not known then.
"""

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from megatron_sky.migrate import arithmetic
from megatron_sky.migrate.limits import MAX_NOTES, MAX_VALUE, Budget
from megatron_sky.migrate.tree import EVERYTHING, may_set, parts, shown, source, start
from megatron_sky.migrate.values import (
    ARGUMENTS,
    State,
    Value,
    decided,
    flags,
    holds_text,
    is_known,
    maybes,
    plain,
    unknown,
    unset,
)

LITERAL, QUOTED, SPLIT, BETWEEN = "literal", "quoted", "split", "between"
Piece = tuple[str, str]

_MOST_ALTERNATIVES = 1000  # of the braces of a word
_LONGEST_CUT = 1000  # characters of a value of which a pattern is cut off
_OPERATOR = re.compile(r":?[-=+?]|##?|%%?|//?|\^\^|,,|:")
_NAMES = ("variable_name", "special_variable_name", "subscript")
_FILES = re.compile(r"[*?]|\[.+\]")
_BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")


class Words:
    """Expands words by the script's state, and changes the state where an expansion assigns."""

    def __init__(self):
        self.state = State()
        self.notes: list[str] = []
        self.budget = Budget()
        self.exports_all = False
        self.escapes = '$`"\\\n'  # what \ takes its meaning from between quotes

    def note(self, text: str) -> None:
        if len(self.notes) == MAX_NOTES:
            text = f"more than {MAX_NOTES} things are not followed; the others are not listed"
        if len(self.notes) <= MAX_NOTES and text not in self.notes:
            self.notes.append(text)

    # Variables

    def lose(self, names: set[str], why: str) -> None:
        """What sets these variables is not followed: from here on they are not known."""
        if EVERYTHING in names:
            self.state.blind = True
            names = (names - {EVERYTHING}) | self.state.values.keys()
        self.note_lost(self.forget(names), why)

    def lose_known(self, names: set[str], why: str) -> None:
        """`lose`, told only where something of them was known."""
        if held := self.forget(names - {EVERYTHING}):
            self.note_lost(held, why)

    def forget(self, names: set[str]) -> dict[str, list[str]]:
        """Returns those of the variables of which something was known, each with the arguments that it held."""
        values = self.state.values
        held = {name: flags(values[name]) for name in names if name in values and holds_text(values[name])}
        for name in names:
            self.state.forget(name)
        return held

    def note_lost(self, held: dict[str, list[str]], why: str) -> None:
        shown = {name: "$1, $2 ..." if name == ARGUMENTS else name for name in sorted(held)}
        listed = ", ".join(f"{shown[name]} ({' '.join(held[name])})" if held[name] else shown[name] for name in shown)
        self.note(f"{why}; not known from there on: {listed}" if listed else why)

    def assign(self, name: str, value: Value, index: str | None = None, *, appends: bool = False) -> None:
        before = self.state.values.get(name)
        size = sum(map(len, value)) + len(value) + (sum(map(len, before or "")) + len(before or "") if appends else 0)
        self.budget.spend(characters=size)
        if isinstance(value, list):
            if index is not None:  # bash refuses it
                held = {name: flags(value)} if holds_text(value) else {}
                self.note_lost(held, f"the element [{plain(index)}] of {name} is not followed")
                value = unknown()
            elif appends:
                lost = isinstance(before, str) and not is_known(before)
                value = unknown() if lost else self.elements(before) + value
        elif index is not None or isinstance(before, list):
            value = self.with_element(name, before, index or "0", value, appends)
        elif appends:
            value = (before or "") + value
        if size > MAX_VALUE:
            held = {name: flags(value)} if holds_text(value) else {}
            self.note_lost(held, f"{name} grows longer than {MAX_VALUE:,} characters and is not followed")
            value = unknown()
        self.state.put(name, value)
        if self.exports_all:
            self.state.exported.add(name)

    def with_element(self, name: str, before: Value | None, index: str, text: str, appends: bool) -> Value:
        elements, at = self.elements(before), self.compute(index)
        if at is None or not -len(elements) <= at <= len(elements) or (before and not is_known(before)):
            held = {name: flags(before)} if holds_text(before) else {}
            self.note_lost(held, f"the element [{plain(index)}] of {name} is not followed")
            return unknown()
        old = elements[at] if appends and at < len(elements) else ""
        at %= len(elements) + (at >= 0)
        return [*elements[:at], old + text, *elements[at + 1 :]]

    def elements(self, value: Value | None) -> list[str]:
        return value if isinstance(value, list) else [] if value is None else [value]

    def compute(self, text: str) -> int | None:
        """Of whole numbers; None where it is not known."""
        try:
            return arithmetic.evaluate(text, self.number, self.assign)
        except arithmetic.Unknown:
            self.lose_known(may_set(f"(({text}))"), f"(({plain(text)[:80]})) is not computed")
            return None

    def number(self, name: str) -> str:
        return (self.elements(self.state.get(name)) or [unknown()])[0]

    # Words

    def text(self, group: Sequence) -> str:
        """The value that an assignment of the word gives."""
        pieces = self.pieces_of(group)
        if any(kind == LITERAL and re.search(r":~", text) for text, kind in pieces):
            return unknown()
        return "".join(text for text, _ in pieces)

    def words_of(self, group: Sequence) -> list[str]:
        """The words that a command gets for the word; one that names files by a pattern is not known."""
        pieces, written = self.pieces_of(group), "".join(map(source, group))
        if _BRACES.search("".join(text if kind == LITERAL else "_" for text, kind in pieces)):
            several = without_braces(pieces)
            if several is None:
                self.note(f"the braces of {written[:80]} are not followed")
                return [unknown()]
            self.budget.spend(len(several))
            return [word for one in several for word in self.split(one, written)]
        return self.split(pieces, written)

    def split(self, pieces: list[Piece], written: str) -> list[str]:
        if "IFS" in self.state.values and any(kind == SPLIT for _, kind in pieces):
            self.note(f"{written[:80]} is not split by IFS")
            return [unknown()]
        fields: list[list[str]] = []  # (word, what of it may be a pattern)
        goes_on = False
        for text, kind in pieces:
            parts = re.split(r"[ \t\n]+", text) if kind == SPLIT else [text]
            for number, part in enumerate(parts):
                goes_on = goes_on and number == 0
                if kind == BETWEEN or (kind == SPLIT and not part):
                    continue
                if not goes_on:
                    fields.append(["", ""])
                    part = self.without_quotes(part) if kind == SPLIT else part
                fields[-1][0] += part
                fields[-1][1] += "_" if kind == QUOTED else part
                goes_on = True
            goes_on = goes_on and kind != BETWEEN
        for word in fields:
            if _FILES.search(word[1]):
                self.note(f"{plain(word[0])} is not expanded: files are not looked at")
                word[0] = unknown()
        return [word for word, _ in fields]

    def without_quotes(self, text: str) -> str:
        match = re.fullmatch(r"(['\"])([^'\"]*)\1", text)
        if match:
            self.note(f"the quotes of {plain(text)} are taken off; bash would hand them on as they stand in the value")
        return match[2] if match else text

    def pieces_of(self, group: Sequence) -> list[Piece]:
        """Of the parts of a word; ~ at its beginning is $HOME, and the $ before a translated text is dropped."""
        kept = group[1:] if len(group) > 1 and group[0].type == "$" else group
        pieces = [piece for node in kept for piece in self.pieces(node)]
        path = re.match(r"((?:[A-Za-z_]\w*=)?)~([^/]*)(.*)", pieces[0][0], re.S) if pieces else None
        if path and pieces[0][1] == LITERAL:
            home = unknown() if path[2] else str(self.state.get("HOME") or unset("HOME"))
            pieces[0] = (path[1] + home + path[3], LITERAL)
        return pieces

    def pieces(self, node, quoted: bool = False) -> list[Piece]:
        self.budget.spend()
        text, begin, end = source(node).lstrip(), start(node), node.end_byte
        mode = QUOTED if quoted else SPLIT
        match node.type:
            case "string" | "translated_string":
                inner = self.region(node, begin + text.index('"') + 1, end - 1, quoted=True)
                return inner if inner or "@" in text else [("", QUOTED)]
            case "raw_string":
                return [(text if quoted else text[1:-1], QUOTED)]
            case "ansi_c_string":
                return [(unknown() if "\\" in text else text[2:-1], QUOTED)]
            case "arithmetic_expansion":
                size = 2 if text.startswith("$[") else 3
                value = self.compute(self.inner_text(node, begin + size, end - size + 1))
                return [(self.not_computed(node) if value is None else str(value), mode)]
            case "command_substitution" | "process_substitution":
                return [(self.not_computed(node), QUOTED)]
            case "simple_expansion" | "expansion":
                return self.expansion(node, quoted)
        return self.region(node, begin, end, quoted)

    def not_computed(self, node) -> str:
        names = may_set(source(node).lstrip()[2:]) if node.type == "expansion" else set()
        self.note_lost(self.forget(names - {EVERYTHING}), f"{shown(node)} is not computed")
        return unknown()

    def inner_text(self, node, first: int, end: int) -> str:
        return "".join(text for text, _ in self.region(node, first, end, quoted=True))

    def region(self, node, first: int, end: int, quoted: bool) -> list[Piece]:
        """Pieces of a part of a node: its quotations and expansions, and the text between."""
        inner = [part for child in node.children for part in parts(child)]
        inner = [part for part in inner if first <= start(part) and part.end_byte <= end]
        whole, zero = node.text, node.start_byte
        out: list[Piece] = []
        for before, after in pairwise([None, *inner, None]):
            begins, ends = before.end_byte if before else first, start(after) if after else end
            out += self.literal(whole[begins - zero : ends - zero].decode("utf-8", "replace"), quoted)
            out += self.pieces(after, quoted) if after else []
        return out

    def literal(self, text: str, quoted: bool) -> list[Piece]:
        if re.search(r"(?<!\\)(?:`|\$[\w{(@*#?!])" if quoted else r"(?<!\\)(?:[`'\"]|\$[\w{(@*#?!])", text):
            return [(unknown(), QUOTED)]  # the grammar keeps some patterns as one text
        out: list[Piece] = []
        for escaped, rest in re.findall(r"\\(.)|([^\\]+|\\$)", text, re.S):
            kept = escaped if not quoted or escaped in self.escapes else f"\\{escaped}"
            if rest or escaped != "\n":
                out.append((rest or kept, QUOTED if quoted or escaped else LITERAL))
        return out

    # Expansions

    def expansion(self, node, quoted: bool) -> list[Piece]:
        mode, raw = QUOTED if quoted else SPLIT, node.text.lstrip()
        target = next((child for child in node.children if child.type in _NAMES), None)
        if target is None:
            return [(self.count(ARGUMENTS) if raw == b"${#}" else self.not_computed(node), mode)]
        prefix = raw[2 : target.start_byte - node.end_byte] if raw.startswith(b"${") else b""
        rest = raw[target.end_byte - node.end_byte : -1].decode("utf-8", "replace") if raw.startswith(b"${") else ""
        name, index = self.place(target)
        sign = operator.group() if (operator := _OPERATOR.match(rest)) else ""
        kind = name if name in ("@", "*") else index if index in ("@", "*") else ""
        if prefix == b"#" and not rest:
            return [(self.count(name, index), mode)]
        if prefix or (rest and not sign):
            return [(self.not_computed(node), mode)]
        values = self.all_of(name) if kind else [self.one(name, index)]
        if not kind and index is None and len(self.elements(self.state.values.get(name))) > 1 and name != ARGUMENTS:
            self.note(
                f"${name} of an array is its first element alone, as in bash; ${{{name}[@]}} would be all of them"
            )
        after = target.end_byte + len(sign)
        if sign and sign[-1] in "-=+?":
            return self.default(node, sign, (name, index), values, kind, quoted, after)
        if sign == ":":
            values = self.slice(node, values, kind, after, first=int(name in ("@", "*")))
        elif sign:
            change = self.change(node, sign, after)
            values = [change(text) if text is not None and is_known(text) else None for text in values]
        elif not kind and values == [None]:
            values = ["" if name.isdecimal() and self.state.local else unset(name)]
        known = _all_known(values)
        return [(self.not_computed(node), mode)] if known is None else self.spread(known, kind, mode)

    def place(self, target) -> tuple[str, str | None]:
        """(name, text of the index) of what an expansion or an assignment names."""
        name, *_ = target.children or [target]
        if target.type != "subscript":
            return source(target), None
        index = source(target)[len(source(name)) + 1 : -1]
        return source(name), index if index in ("@", "*") else self.inner_text(
            target, name.end_byte + 1, target.end_byte - 1
        )

    def one(self, name: str, index: str | None) -> str | None:
        """The text of a variable, an argument, or an array's element; None where it is not set."""
        if name == "#":
            return self.count(ARGUMENTS)
        if name == "0" or re.fullmatch(r"\W", name):
            return unknown(name if name == "0" else "")
        value = self.state.get(ARGUMENTS if name.isdecimal() else name)
        if value is None or (isinstance(value, str) and (index is None or not is_known(value))):
            return value
        at = int(name) - 1 if name.isdecimal() and len(name) < 6 else self.compute(index or "0")
        elements = self.elements(value)
        if at is None or any(map(maybes, elements)):
            return unknown()
        return elements[at] if -len(elements) <= at < len(elements) else None

    def all_of(self, name: str) -> list[str | None]:
        """The elements of an array, or the arguments; [None] where they are not known."""
        value = self.state.values.get(ARGUMENTS if name == "*" else name)
        if value is None:
            self.note(f"the array {name} is set nowhere")  # an environment holds no arrays
        return [None] if isinstance(value, str) and not is_known(value) else list(self.elements(value))

    def count(self, name: str, index: str | None = None) -> str:
        """The number of elements, or of characters."""
        if name in ("@", "*") or index in ("@", "*"):
            values = _all_known(self.all_of(name))
            return unknown() if values is None or not is_known(values) else str(len(values))
        value = self.one(name, index)
        return str(len(value)) if value is not None and is_known(value) else unknown()

    def spread(self, values: list[str], kind: str, mode: str) -> list[Piece]:
        """The values as words of their own, or as one text where it is `"${NAME[*]}"`."""
        self.budget.spend(len(values), characters=sum(map(len, values)))
        if kind == "*" and mode == QUOTED:
            return [(unknown() if "IFS" in self.state.values else " ".join(values), mode)]
        return [piece for value in values for piece in ((value, mode), (" ", BETWEEN))][:-1]

    def default(self, node, sign: str, place: tuple, values: list, kind: str, quoted: bool, after: int) -> list[Piece]:
        """Of `${NAME:-WORD}` and the like; a variable that is not set counts as empty."""
        mode = QUOTED if quoted else SPLIT
        is_set = bool(values) if kind else values not in ([None], [unset(place[0])])
        known = [None if value is None else decided(value) or (value if is_known(value) else None) for value in values]
        if is_set and None in known:  # whether the word is used is not known
            keeps = sign[-1] != "+" and not kind and not maybes(values[0])
            text = self.not_computed(node)
            return [(values[0] if keeps else text, mode)]
        empty = not is_set or (sign[0] == ":" and not any(known))
        if sign[-1] == "+" and empty:
            return [("", mode)]
        if sign[-1] == "?" and empty:
            return [(unset(place[0]), mode)]
        if sign[-1] != "+" and not empty:
            return self.spread(values, kind, mode)
        pieces = self.region(node, after, node.end_byte - 1, quoted)
        if sign[-1] == "=":
            self.assign(place[0], "".join(text for text, _ in pieces), place[1])
            return [(self.one(*place) or "", mode)]
        return [(text, SPLIT if kind == LITERAL else kind) for text, kind in pieces]

    def slice(self, node, values: list, kind: str, after: int, *, first: int) -> list[str | None]:
        """Of `${NAME:START:LENGTH}`, where the first element is number `first`; [None] where it is not known."""
        end = node.end_byte - 1
        colons = [child.start_byte for child in node.children if child.type == ":" and child.start_byte >= after]
        begin = self.compute(self.inner_text(node, after, (colons or [end])[0]))
        length = self.compute(self.inner_text(node, colons[0] + 1, end)) if colons else MAX_VALUE
        known = _all_known(values)
        if known is None or begin is None or length is None or not is_known(known) or begin < first or length < 0:
            return [None]
        cut = slice(begin - first, begin - first + length)
        return [*known[cut]] if kind else [known[0][cut]]

    def change(self, node, sign: str, after: int) -> Callable[[str], str | None]:
        """What `${NAME#PATTERN}`, `${NAME/TEXT/TEXT}` and `${NAME^^}` make of a text: None where it is not known."""
        end = node.end_byte - 1
        if sign in ("^^", ",,") and after == end:
            return lambda text: (text.upper() if sign == "^^" else text.lower()) if text.isascii() else None
        slash = next(
            (child.start_byte for child in node.children if child.type == "/" and child.start_byte >= after), end
        )
        shape = pattern(self.region(node, after, slash if sign[0] == "/" else end, quoted=False))
        if shape is None or sign in ("^^", ",,"):
            return lambda text: None
        if sign[0] != "/":
            return lambda text: _without(text, sign, shape) if len(text) <= _LONGEST_CUT else None
        new = "".join(text for text, _ in self.region(node, slash + 1, end, quoted=False)) if slash < end else ""
        if re.search(r"[*?[]|^$|^[#%]", shape) or "&" in new or not is_known(new):  # & is the match in newer versions
            return lambda text: None

        def replaced(text: str) -> str | None:
            number = min(text.count(shape), 1 if sign == "/" else MAX_VALUE)
            is_small = len(text) + number * len(new) <= MAX_VALUE
            return text.replace(shape, new, number) if is_small else None

        return replaced


def without_braces(pieces: list[Piece]) -> list[list[Piece]] | None:
    """The words that `{A,B}` and `{1..3}` make of one; None where they are too many, or within each other."""
    choices, count = [], 1
    for text, kind in pieces:
        at = 0
        for match in _BRACES.finditer(text) if kind == LITERAL else ():
            alternatives = _alternatives(match[0][1:-1])
            if alternatives is None or (count := count * len(alternatives)) > _MOST_ALTERNATIVES:
                return None
            choices += [[(text[at : match.start()], kind)], [(one, kind) for one in alternatives]]
            at = match.end()
        if kind == LITERAL and re.search(r"[{}]", _BRACES.sub("", text)):
            return None
        choices.append([(text[at:], kind)])
    return [[piece for piece in one if piece != ("", LITERAL)] for one in itertools.product(*choices)]


def _alternatives(inner: str) -> list[str] | None:
    if "," in inner:
        return inner.split(",")
    match = re.fullmatch(r"(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.-?(\d{1,9}))?", inner)
    if match is None:
        return None
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
    padded = any(re.match(r"-?0\d", text) for text in match.groups()[:2])
    width = max(map(len, match.groups()[:2])) if padded else 0
    if abs(last - first) // step >= _MOST_ALTERNATIVES:
        return None
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}}" for number in numbers]


def _all_known(values: list[str | None]) -> list[str] | None:
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def pattern(pieces: Iterable[Piece]) -> str | None:
    """For fnmatch; None where it is not known."""
    out = ""
    for piece, kind in pieces:
        text = decided(piece)
        if text is None or (kind != QUOTED and re.search(r"\[\[[:=.]|[?*+@!]\(|\\", text)):
            return None
        out += re.sub(r"([*?[])", r"[\1]", text) if kind == QUOTED else text.replace("[^", "[!")
    return out


def _without(text: str, sign: str, shape: str) -> str:
    """Without the shortest (#, %) or longest (##, %%) beginning or end like the pattern."""
    cuts = range(len(text) + 1)
    fits = re.compile(fnmatch.translate(shape)).match
    for cut in cuts if len(sign) == 1 else reversed(cuts):
        if fits(text[:cut] if sign[0] == "#" else text[len(text) - cut :]):
            return text[cut:] if sign[0] == "#" else text[: len(text) - cut]
    return text
