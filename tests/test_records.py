"""Files read back by their types: old and new ones are taken, and what is wrong is named."""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest

from megatron_sky.records import BadRecord, flattened, more_than_once, read_record


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 3


@dataclass(frozen=True)
class Whole:
    loss: float
    parts: tuple[Part, ...]
    note: str | None = None


def test_old_and_later_files_are_read():
    given = {"loss": "inf", "parts": [{"name": "a"}, {"name": "b", "size": 4, "later": 1}], "later": {}}
    assert read_record(Whole, given) == Whole(math.inf, (Part("a"), Part("b", 4)))
    assert math.isnan(read_record(float, "nan")) and read_record(dict[str, Part], {}) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"parts": []}, "loss: is required and not given"),
        ({"loss": "x", "parts": []}, "loss = 'x': should be a valid number, unable to parse string as a number"),
        ({"loss": 1, "parts": [{"name": "a"}, {"name": 5}]}, "parts.1.name = 5: should be a valid string"),
        ({"loss": 1, "parts": [{"name": "a", "size": 1.5}]}, "parts.0.size = 1.5: should be a valid integer"),
        ({"loss": None, "parts": []}, "loss: should be a valid number"),
        ([], "it: should be a dictionary"),
    ],
)
def test_field_value_and_rule_are_named(given, words):
    with pytest.raises(BadRecord) as caught:
        read_record(Whole, given)
    assert str(caught.value).startswith(words)


def test_all_problems_are_named_of_a_file_of_another_kind_the_first_ones():
    with pytest.raises(BadRecord, match="loss: is required and not given; parts: is required and not given"):
        read_record(Whole, {})
    with pytest.raises(BadRecord, match=r"4\.size = 'x': .*; and 3 more$"):
        read_record(list[Part], [{"name": "a", "size": "x"}] * 8)


def test_pydantic_is_imported_when_something_is_read():
    code = "import sys, megatron_sky.records, megatron_sky.files, megatron_sky.data.tokens.meta; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "filelock", "torch", "jinja2"} & set(done.stdout.split())


def test_a_tree_by_its_dotted_keys():
    tree = {"a": {"b": 1, "c": {"d": [{"e": 2}]}}, "f": None, "g": {}}
    assert flattened(tree) == {"a.b": 1, "a.c.d": [{"e": 2}], "f": None}
    assert flattened({}) == {}


def test_names_that_come_again():
    assert more_than_once(iter(["b", "a", "c", "a", "b", "a"])) == ["a", "b"] and more_than_once([]) == []
