"""Bash's own reading of a script's tree: what is joined to what, which words a command has, what a text may set."""

import pytest

from megatron_sky.migrate.tree import (
    EVERYTHING,
    assignments,
    chain,
    first_command,
    may_set,
    misread,
    parse,
    shown,
    source,
    statements,
    words,
)


def only(text: str):
    (node,) = [child for child in parse(text).children if child.is_named]
    return node


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("a | b && c", ["a", "|", "b", "&&", "c"]),
        ("a && b || c", ["a", "&&", "b", "||", "c"]),
        ("! a | b", ["!", "a", "|", "b"]),
        ("a |& b", ["a", "|&", "b"]),
    ],
)
def test_commands_and_the_signs_between(text, parts):
    assert [one if isinstance(one, str) else source(one) for one in chain(only(text))] == parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python train.py --a 1", ["train.py", "--a", "1"]),
        ("run 'a b'$C\"d\" e", ["'a b'$C\"d\"", "e"]),
        ("run a > file b", ["a", "b"]),
        ("run a 2>&1 b", ["a", "b"]),
    ],
)
def test_words_of_a_command(text, expected):
    found = ["".join(source(part) for part in word) for word in words(only(text))]
    assert found[-len(expected) :] == expected and "file" not in found


def test_what_runs_in_the_background():
    nodes = statements(parse("a &\nb\nc & d # no\n").children)
    assert [(source(node), behind) for node, behind in nodes] == [("a", True), ("b", False), ("c", True), ("d", False)]


@pytest.mark.parametrize(
    ("text", "before", "own"),
    [
        ("A=1 B=2\nC=3 run", ["A=1", "B=2"], ["C=3"]),
        ("A=1 B=2 # both\nrun", ["A=1", "B=2"], []),
        ("A=1 \\\n B=2 run", [], ["A=1", "B=2"]),
        ("run A=1", [], []),
    ],
)
def test_assignments_of_lines_before_are_not_the_commands(text, before, own):
    found = assignments(first_command(only(text)))
    assert [[source(node) for node in part] for part in found] == [before, own]


def test_a_node_on_one_short_line():
    assert shown(only("a \\\n  b")) == "a b"
    long = shown(only("echo " + "x" * 200))
    assert len(long) == 80 and long.endswith("...")


@pytest.mark.parametrize(("text", "wrong"), [("a b", False), ("if true; then a; fi", False), ("a )", True)])
def test_what_the_grammar_can_not_read(text, wrong):
    assert any(misread(child) for child in [parse(text), *parse(text).children]) == wrong


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A=1; B+=2", {"A", "B"}),
        ("for I in 1 2; do x; done", {"I"}),
        ("(( N++ ))", {"N"}),
        ("read -r LINE REST", {"LINE", "REST", "REPLY"}),
        ("printf -v OUT %s x", {"OUT"}),
        ("printf %s x", set()),
        ("echo A=", {"A"}),  # too many rather than too few
        ("eval $X", {EVERYTHING}),
        ("source env.sh", {EVERYTHING}),
        ("read $NAME", {"REPLY", EVERYTHING}),
        ("python train.py --lr 1", set()),
    ],
)
def test_what_a_text_may_set(text, names):
    found = may_set(text)
    assert names <= found and (EVERYTHING in found) == (EVERYTHING in names)


def test_what_a_function_sets_that_is_called():
    functions = {"f": "A=1; g", "g": "B=2; f", "h": "C=3"}
    assert may_set("f", functions) == {"A", "B"} and may_set("ff", functions) == set()
    assert may_set("$F", functions) >= {"A", "B", "C"}
