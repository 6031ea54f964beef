"""What a launch script may take: its size, how deep it nests, and the work of following it.

They lie far above any script that is written by hand; what is beyond ends the reading with a message, before the work.
"""

import re

from megatron_sky.errors import ConfigError, Problem

MAX_BYTES, MAX_LINES, MAX_BRACKETS, MAX_PIPES = 256 * 1024, 10_000, 500, 4000
MAX_DEPTH = 250
"""Of the tree that the grammar makes."""
MAX_STATEMENTS = 60
"""Within each other, those of functions and of other shells too."""
MAX_STEPS = 50_000
"""A step is a part of the script that is looked at, or `CHARACTERS` that are handled."""
CHARACTERS = 100
MAX_VALUE = 100_000
"""Characters of a variable's value."""
MAX_NOTES = 300
PARSE_SECONDS = 5


class Budget:
    """The work of following one script."""

    def __init__(self):
        self.steps = 0

    def spend(self, steps: int = 1, *, characters: int = 0) -> None:
        self.steps += steps + characters // CHARACTERS
        if self.steps > MAX_STEPS:
            raise too_much(f"takes more than {MAX_STEPS:,} steps to follow: loops, functions or values that grow")


def check_size(num_bytes: int) -> None:
    _check(num_bytes, MAX_BYTES, "bytes")


def check_text(text: str) -> None:
    """Raises ConfigError for a script larger or deeper than any that is written by hand."""
    depth = deepest = 0
    for bracket in re.findall(r"[][(){}]", text):
        depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    check_size(len(text.encode("utf-8", "replace")))
    _check(text.count("\n"), MAX_LINES, "lines")
    _check(deepest, MAX_BRACKETS, "brackets within each other")
    _check(text.count("|"), MAX_PIPES, "pipe signs")


def check_tree(root) -> None:
    """Raises ConfigError where the script's tree is too deep for those who walk it."""
    cursor, depth, more = root.walk(), 0, True
    while more:
        if more := cursor.goto_first_child():
            depth += 1
            _check(depth, MAX_DEPTH, "commands or signs within each other")
        while not more and not (more := cursor.goto_next_sibling()) and cursor.goto_parent():
            depth -= 1


def _check(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise too_much(f"has {count:,} {what}, and no more than {limit:,} are read")


def too_much(rule: str) -> ConfigError:
    return ConfigError(Problem("the launch script", rule, "give Megatron-LM's arguments themselves"))
