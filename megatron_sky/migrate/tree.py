"""A shell script as the tree of tree-sitter's bash grammar, within limits, and what the tree does not say plainly.

The grammar joins `a | b && c` and `> file word` otherwise than bash does; `chain` and `words` give bash's own reading.
"""

import functools
import re
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

from megatron_sky.migrate.limits import PARSE_SECONDS, check_text, check_tree, too_much

EXPANSIONS = {"simple_expansion", "expansion", "arithmetic_expansion", "command_substitution", "process_substitution"}
_STRUCTURED = EXPANSIONS | {"string", "raw_string", "ansi_c_string", "translated_string"}
_STATEMENTS = {"program", "compound_statement", "do_group", "subshell", "list", "pipeline", "redirected_statement"}
_STATEMENTS |= {"if_statement", "elif_clause", "else_clause", "while_statement", "for_statement", "case_item"}
_STATEMENTS |= {"c_style_for_statement", "case_statement", "function_definition", "negated_command"}
EVERYTHING = "*"
"""Among the names that a text may set: whatever there is."""

_NAME = r"(?<![-\w$])([A-Za-z_]\w*)(?:\[[^]\n]*\])?"
_SETS = (
    re.compile(_NAME + r"\s*(?::?=|[-+*/%&^|]=|<<=|>>=|\*\*=|\+\+|--)"),
    re.compile(r"(?:\+\+|(?:\(\(|[,;=+*/(\[]|\blet\s+[\"']?)\s*--)\s*([A-Za-z_]\w*)"),
    re.compile(r"\b(?:for|select|coproc)\s+([A-Za-z_]\w*)"),
)
_SETTERS = "read|mapfile|readarray|getopts|unset|declare|typeset|local|export|readonly|let|printf|wait|set|shift"
_SETTER = re.compile(rf"\b({_SETTERS})\b([^\n;|&)]*)")
_BEGINS = r"(?:^|[\n;&|({`!]|\b(?:then|do|else|elif|if|while|until|time|command|builtin|exec)\s)\s*"
_RUNS_TEXT = re.compile(_BEGINS + r"(?:\\|[\"'])?(?:eval|source|\.)(?=[\s\"'])")
_RUNS_VARIABLE = re.compile(_BEGINS + r"\"?\$[\w{]")
_DEFAULTS = {"read": ["REPLY"], "mapfile": ["MAPFILE"], "readarray": ["MAPFILE"], "getopts": ["OPTARG", "OPTIND"]}
_DEFAULTS |= {"set": ["@"], "shift": ["@"]}


def parse(text: str):
    """The root of the script's tree. Raises ConfigError where that is beyond the limits."""
    check_text(text)
    source = text.encode("utf-8", "replace")
    end = time.monotonic() + PARSE_SECONDS
    try:
        tree = _parser().parse(lambda at, _: source[at:], progress_callback=lambda *_: time.monotonic() > end)
    except ValueError:
        raise too_much(f"takes more than {PARSE_SECONDS} seconds to parse") from None
    check_tree(tree.root_node)
    return tree.root_node


@functools.cache
def _parser():
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


def source(node) -> str:
    return node.text.decode("utf-8", "replace")


def start(node) -> int:
    """Where a node begins; between two expansions in quotes the grammar counts the blanks to the second."""
    return node.end_byte - len(node.text.lstrip()) if node.type in EXPANSIONS else node.start_byte


def shown(node) -> str:
    """A node on one short line."""
    text = " ".join(source(node).replace("\\\n", " ").split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def misread(node) -> bool:
    """Whether the grammar could not read this node itself; a statement's parts are judged on their own."""
    if not node.has_error:
        return False
    return node.type not in _STATEMENTS or any(child.is_error or child.is_missing for child in node.children)


def statements(children: list) -> list[tuple]:
    """(statement, whether it runs in the background) of a node's children."""
    kept = [child for child in children if (child.is_named and child.type != "comment") or child.type == "&"]
    ends = [*kept[1:], None]
    return [(one, bool(end) and end.type == "&") for one, end in zip(kept, ends, strict=False) if one.type != "&"]


def assignments(command) -> tuple[list, list]:
    """(those of the lines before, those of the command) that the grammar takes for a command's own."""
    parts = [child for child in command.children if child.type != "comment"]
    lines_before = 0
    for number, (node, follows) in enumerate(pairwise(parts), 1):
        if node.type != "variable_assignment":
            break
        between = command.text[node.end_byte - command.start_byte : follows.start_byte - command.start_byte]
        if b"\n" in between.replace(b"\\\n", b""):
            lines_before = number
    return parts[:lines_before], [part for part in parts[lines_before:] if part.type == "variable_assignment"]


def first_command(node):
    """The command that a statement begins with, or the statement."""
    while node.type in ("list", "pipeline", "redirected_statement"):
        node = node.children[0]
    return node


def chain(node) -> Iterator:
    """Commands and the signs `&&`, `||`, `|`, `|&`, `!` between them, in the order of the text."""
    if node.type in ("list", "pipeline", "negated_command"):
        for child in node.children:
            yield from chain(child) if child.is_named else [child.type]
    elif node.type == "redirected_statement" and node.children[0].type in ("list", "pipeline"):
        yield from chain(node.children[0])
        yield from _after_heredoc(node)
    else:
        yield node
        yield from _after_heredoc(node)


def _after_heredoc(node) -> Iterator:
    """What follows `<<END` on its line."""
    if node.type in ("command", "redirected_statement"):
        for document in (child for child in node.children if child.type == "heredoc_redirect"):
            for child in document.children:
                if child.type == "pipeline" or child.type in ("&&", "||"):
                    yield from chain(child) if child.is_named else [child.type]
            for child in document.children_by_field_name("right"):
                if child.type != "pipeline":
                    yield from chain(child)


def words(node) -> list[list]:
    """The parts of each word of a command; a redirection keeps one word, those after it are the command's."""
    return adjacent(_word_parts(node))


def adjacent(nodes: Iterable) -> list[list]:
    """Nodes with nothing between them belong to one word."""
    groups: list[list] = []
    for part in nodes:
        if groups and groups[-1][-1].end_byte == part.start_byte:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _word_parts(node) -> Iterator:
    if node.type == "redirected_statement":
        yield from _word_parts(node.children[0])
    for number, child in enumerate(node.children):
        field = node.field_name_for_child(number)
        if child.type == "file_redirect":
            yield from child.children_by_field_name("destination")[1:]
        elif child.type == "heredoc_redirect":
            yield from _word_parts(child)
        elif field == "argument" or (field == "name" and child.type == "command_name"):
            yield child


def parts(node) -> Iterator:
    """The outermost quotations and expansions within a node, or the node itself where it is one."""
    if node.type in _STRUCTURED:
        yield node
    else:
        for child in node.children:
            yield from parts(child)


def may_set(text: str, functions: dict[str, str] | None = None) -> set[str]:
    """Names of variables that running `text` may set, too many rather than too few; EVERYTHING where it can't be told.

    `functions` are those that it may call, with their texts.
    """
    names: set[str] = set()
    waiting, called = [text], dict(functions or {})
    while waiting:
        text = waiting.pop().replace("\\\n", " ")
        names |= _sets(text)
        variable = _RUNS_VARIABLE.search(text)
        for name in [name for name in called if variable or re.search(rf"(?<![-\w]){re.escape(name)}(?![-\w])", text)]:
            waiting.append(called.pop(name))
    return names


def _sets(text: str) -> set[str]:
    names = {match.group(1) for pattern in _SETS for match in pattern.finditer(text)}
    for command, operands in _SETTER.findall(text):
        option = {"printf": "-v", "wait": "-p"}.get(command, "")
        if option in operands:
            names.update(_DEFAULTS.get(command, []), re.findall(r"(?:^|\s)[\"']?([A-Za-z_]\w*)", operands))
            if command not in ("set", "shift") and re.search(rf"(?:^|\s|{option})[\"']?[$`]", operands):
                names.add(EVERYTHING)
    return names | ({EVERYTHING} if _RUNS_TEXT.search(text) else set())
