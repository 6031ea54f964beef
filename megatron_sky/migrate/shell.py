"""The arguments that a launch script would start a training with, without running any of it.

Followed are assignments of variables and arrays, conditions on their values, `case`, functions, loops over words that
are known, and what `bash -c`, `eval` or a here document hand to another shell. Of the commands that carry arguments the
last that trains is taken. Commands are never executed; they are taken to succeed. What may have changed a variable and
is not followed (a file that is sourced, `read`, a loop without end) makes it unknown, and `notes` says so. Where a
condition is not decided, both ways are followed: what they leave alike is known.

A variable that nothing sets, or whose value only a run would tell, stays as `${NAME}`, which a recipe reads from the
environment.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise

from megatron_sky.migrate.commands import Commands, Stop
from megatron_sky.migrate.conditions import Operand, judge, operand
from megatron_sky.migrate.flow import RAN, Status
from megatron_sky.migrate.limits import MAX_STATEMENTS, too_much
from megatron_sky.migrate.tree import (
    adjacent,
    assignments,
    chain,
    first_command,
    misread,
    parse,
    shown,
    source,
    statements,
    words,
)
from megatron_sky.migrate.values import ARGUMENTS, MARKS, decided, is_known, maybes, plain, under, unset_names
from megatron_sky.migrate.words import pattern

_MOST_READINGS = 30


@dataclass
class Script:
    """What was read: the words of the command that trains, and what could not be followed."""

    words: list[str] = field(default_factory=list)
    readings: list[tuple[list[str], str]] = field(default_factory=list)
    """Other words that the command may have, each with the condition that they hang on."""
    exported: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_script(text: str, arguments: Sequence[str] = ()) -> Script:
    """Follows `text` as bash would with `arguments` as $1, $2 ...

    Raises ConfigError for a script that is larger, or nests deeper, than one that is written by hand.
    """
    reader = _Reader(arguments)
    text = MARKS.sub("\ufffd", text.replace("\r\n", "\n").replace("\0", ""))
    try:
        reader.within("shell", lambda _: reader.step(parse(text)))
    except Stop as stop:
        reader.note(str(stop))
    except RecursionError:
        depth = sys.getrecursionlimit()
        raise too_much(f"joins or nests commands deeper than {depth} of the reader's calls can follow") from None
    return reader.script()


class _Reader(Commands):
    def __init__(self, arguments: Sequence[str]):
        super().__init__()
        self.state.values[ARGUMENTS] = list(arguments)
        self.depth = 0

    def script(self) -> Script:
        state = self.state
        for name in sorted({name for word in state.words for name in unset_names(word)} & state.values.keys()):
            if is_known(state.values[name]):
                self.note(f"{name} is set only after it is used")
        marks = sorted(set().union(*map(maybes, state.words)))
        if len(marks) > _MOST_READINGS:
            self.note(f"{len(marks)} ways of conditions are not decided; only {_MOST_READINGS} are told one by one")
        readings = [({mark}, self.decisions[mark]) for mark in marks[:_MOST_READINGS]]
        readings += (
            [(set(marks), "; ".join(dict.fromkeys(self.decisions[mark] for mark in marks)))] if marks[1:] else []
        )

        def reading(present: set[int]) -> list[str]:
            kept = (under(word, present) for word in state.words)
            return [plain(word) for word in kept if word is not None]

        base = reading(set())
        return Script(
            words=base,
            readings=[(words, why) for present, why in readings if (words := reading(present)) != base],
            exported=state.exported,
            notes=self.notes,
        )

    def step(self, node) -> Status:
        """Follows one statement."""
        self.depth += 1
        try:
            return self.statement(node)
        finally:
            self.depth -= 1

    def statement(self, node) -> Status:
        self.budget.spend()
        if self.depth > MAX_STATEMENTS:
            raise too_much(f"has more than {MAX_STATEMENTS} statements within each other")
        if misread(node) or not (follow := getattr(self, f"follow_{node.type}", None)):
            where = f"line {node.start_point[0] + 1} is not understood: {shown(node)}"
            self.lose(self.may_set(source(node)), where)
            return None
        return follow(node)

    def block(self, children: list) -> Status:
        status: Status = True
        for child, background in statements(children):
            if (first := first_command(child)).type == "command":
                self.assignments(assignments(first)[0])
            status = self.apart(partial(self.line, child)) if background else self.line(child)
        return status

    def line(self, node) -> Status:
        """Commands joined by && and ||, each a pipeline."""
        joined: list[tuple[str, list]] = [("", [])]
        for item in chain(node):
            if item in ("&&", "||"):
                joined.append((item, []))
            elif item not in ("|", "|&"):
                joined[-1][1].append(item)
        status = self.pipeline(joined[0][1])
        for number, (sign, commands) in enumerate(joined[1:]):
            if status is None:
                left = [one if isinstance(one, str) else shown(one) for one in joined[number][1]]
                why = f"the condition `{' '.join(left)}` is not decided"
                status = self.branch(why, [partial(self.pipeline, commands), partial(bool, sign == "||")])
            elif (sign == "&&") == (status is not False):
                status = self.pipeline(commands)
        return status

    def pipeline(self, items: list) -> Status:
        """Commands of which each but a single one is a subshell; `!` turns the status around."""
        commands = [item for item in items if not isinstance(item, str)]
        status: Status = None
        for command in commands:
            step = partial(self.step, command)
            status = step() if len(commands) == 1 else self.apart(step)
        if (len(items) - len(commands)) % 2:
            return not status if isinstance(status, bool) else None
        return status

    def follow_program(self, node) -> Status:
        return self.block(node.children)

    follow_do_group = follow_program
    follow_list = follow_pipeline = follow_negated_command = line

    def follow_compound_statement(self, node) -> Status:
        if node.children[0].type != "((":
            return self.block(node.children)
        value = self.compute(self.inner_text(node, node.start_byte + 2, node.end_byte - 2))
        return None if value is None else value != 0

    def follow_subshell(self, node) -> Status:
        return self.apart(lambda: self.block(node.children))

    def follow_function_definition(self, node) -> Status:
        self.state.functions[source(node.child_by_field_name("name"))] = node.child_by_field_name("body")
        return True

    # Conditions

    def follow_if_statement(self, node) -> Status:
        clauses = [node, *(child for child in node.children if child.type in ("elif_clause", "else_clause"))]
        return self.choose(clauses)

    def choose(self, clauses: list) -> Status:
        if not clauses:
            return True
        children, rest = clauses[0].children[1:], clauses[1:]
        body = [child for child in children if child.type not in ("elif_clause", "else_clause")]
        then = next((number for number, child in enumerate(body) if child.type == "then"), None)
        if then is None:  # else
            return self.block(body)
        status = self.block(body[:then])
        if isinstance(status, bool):
            return self.block(body[then:]) if status else self.choose(rest)
        condition = " ".join(shown(child) for child in body[:then] if child.is_named)
        ways = [partial(self.block, body[then:]), partial(self.choose, rest)]
        return self.branch(f"the condition `{condition}` is not decided", ways)

    def follow_case_statement(self, node) -> Status:
        value = node.child_by_field_name("value")
        items = [child for child in node.children if child.type == "case_item"]
        return self.case(shown(value), decided(self.text([value])), items, falls=False)

    def case(self, given: str, subject: str | None, items: list, *, falls: bool) -> Status:
        """The first item that fits; each that may, where that is not decided."""
        ways: list[Callable[[], Status]] = []
        for number, item in enumerate(items):
            fits = True if falls and number == 0 else self.fits(subject, item)
            if fits is not False:
                ways.append(partial(self.case_item, given, subject, item, items[number + 1 :]))
            if fits:
                break
        else:
            ways.append(lambda: True)
        return ways[0]() if len(ways) == 1 else self.branch(f"a `case` of {given} is not decided", ways)

    def fits(self, subject: str | None, item) -> bool | None:
        shapes = [pattern(self.pieces(value)) for value in item.children_by_field_name("value")]
        if "*" in shapes:
            return True
        results = [None if subject is None or shape is None else fnmatchcase(subject, shape) for shape in shapes]
        return True if True in results else None if None in results else False

    def case_item(self, given: str, subject: str | None, item, rest: list) -> Status:
        start = next(number for number, child in enumerate(item.children) if child.type == ")")
        status = self.block(item.children[start + 1 :])
        end = item.children[-1].type
        return self.case(given, subject, rest, falls=end == ";&") if end in (";&", ";;&") else status

    def follow_test_command(self, node) -> Status:
        result = judge(list(self.operands(node.children[1:-1], double=node.children[0].type == "[[")))
        # which of them come to pass hangs on && and ||
        self.lose_known(self.effects(node), f"what `{shown(node)}` sets is not followed")
        return result

    def operands(self, nodes: list, *, double: bool) -> Iterator[Operand | str]:
        for node in nodes:
            if node.type in ("binary_expression", "unary_expression", "parenthesized_expression"):
                yield from self.operands(node.children, double=double)
            elif node.type == "test_operator" or not node.is_named:
                yield source(node)
            elif double:
                pieces = self.pieces(node)
                yield Operand(decided("".join(text for text, _ in pieces)), pattern(pieces))
            else:
                given = self.words_of([node])
                absent = '"' not in source(node) and any(word and decided(word) == "" for word in given)
                yield from [] if absent else [operand(decided(word)) for word in given]

    # Loops

    def follow_for_statement(self, node) -> Status:
        name, body = source(node.child_by_field_name("variable")), node.child_by_field_name("body")
        values = [word for group in adjacent(node.children_by_field_name("value")) for word in self.words_of(group)]
        if not any(child.type == "in" for child in node.children):
            values = self.elements(self.state.values[ARGUMENTS])
        follows = node.children[0].type == "for" and is_known(values)

        def rounds() -> Iterator[bool]:
            if not follows:
                yield False
                return
            for value in values:
                self.assign(name, value)
                yield True

        return self.rounds(node, body, rounds())

    def follow_c_style_for_statement(self, node) -> Status:
        signs = [child for child in node.children if child.type in ("((", ";", "))")][:4]
        first, condition, update = ((before.end_byte, after.start_byte) for before, after in pairwise(signs))

        def compute(part: tuple[int, int]) -> int | None:
            return self.compute(self.inner_text(node, *part))

        def rounds() -> Iterator[bool]:
            compute(first)
            while (value := compute(condition) if source(node) else 1) != 0:
                yield value is not None
                compute(update)

        return self.rounds(node, node.child_by_field_name("body"), rounds())

    def follow_while_statement(self, node) -> Status:
        body = node.child_by_field_name("body")
        head = node.children[1 : node.children.index(body)]
        goes_on = node.children[0].type == "while"
        endless = shown(head[0]) in ("true", ":", "false") and not re.search(r"\b(break|exit|return)\b", source(body))

        def rounds() -> Iterator[bool]:
            while (status := self.block(head)) is not (not goes_on) and not (status is RAN and not goes_on):
                yield status is goes_on and not endless

        return self.rounds(node, body, rounds())

    # Commands

    def follow_redirected_statement(self, node) -> Status:
        body, *redirections = node.children
        self.lose_known(set().union(*map(self.effects, redirections)), f"what `{shown(node)}` sets is not followed")
        if body.type == "command":
            return self.command(body, words(node), self.document(redirections))
        return self.line(node) if body.type in ("list", "pipeline") else self.step(body)

    def document(self, redirections: list) -> str:
        """The text of `<<END`, with its variables filled in where END is not quoted."""
        kinds = {child.type: child for one in redirections for child in one.children}
        if "heredoc_body" not in kinds:
            return ""
        body = kinds["heredoc_body"]
        text, escapes = source(body), self.escapes
        if not re.search(r"['\"\\]", source(kinds["heredoc_start"])):
            self.escapes = "$`\\\n"
            text = self.inner_text(body, body.start_byte, body.end_byte)
            self.escapes = escapes
        return re.sub(r"(?m)^\t+", "", text) if "<<-" in kinds else text

    def follow_command(self, node) -> Status:
        return self.command(node, words(node), "")

    def command(self, node, groups: list[list], document: str) -> Status:
        inner = next((child for child in node.children if child.type == "subshell"), None)
        if inner:  # time (...)
            return self.step(inner)
        given: list[str] = []
        for group in groups:
            if opens := re.fullmatch(r"\{(\w+)\}", "".join(map(source, group))):  # exec {FD}> FILE
                self.lose_known({opens[1]}, f"{{{opens[1]}}} is set to the number of a file")
            given += [self.text(group)] if given[:1] == ["let"] else self.words_of(group)
        own = assignments(node)[1]
        return self.named(given, document, own) if given else self.assignments(own)

    def follow_variable_assignment(self, node) -> Status:
        return self.assignments([node])

    def follow_variable_assignments(self, node) -> Status:
        return self.assignments(node.named_children)

    def assignments(self, nodes: list) -> Status:
        for node in nodes:
            self.assignment(node)
        return RAN if any("$(" in source(node) or "`" in source(node) for node in nodes) else True

    def follow_declaration_command(self, node) -> Status:
        command, *rest = node.children
        entries: list = []
        for group in adjacent(rest):
            entries += group if group[0].type == "variable_assignment" else self.words_of(group)
        return self.declare(source(command), entries)

    def follow_unset_command(self, node) -> Status:
        return self.unset([word for group in adjacent(node.children[1:]) for word in self.words_of(group)])
