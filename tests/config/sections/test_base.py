"""What values of sections have in common: variables in paths, pairs by either file, no truth value as a number."""

import pytest
from pydantic import ValidationError

from megatron_sky.config.sections.base import (
    KEEP_UNSET,
    FilePath,
    GivenPath,
    Line,
    PairPrefix,
    Positive,
    Section,
    expand_variables,
    kinds_in,
)


class Example(Section):
    path: FilePath = "x"
    prefix: PairPrefix = "x"
    line: Line = ""
    count: Positive = 1
    rate: float = 0.0
    switch: bool = False
    either: int | bool = 0


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}/b", "value/b"),
        ("${A}${A}", "valuevalue"),
        ("${NONE:-default}/b", "default/b"),
        ("${NONE:-}b", "b"),
        ("$${A}", "${A}"),
        ("$A", "$A"),
        ("${1A}", "${1A}"),
        ("plain", "plain"),
    ],
)
def test_variables(text, expanded, monkeypatch):
    monkeypatch.setenv("A", "value")
    monkeypatch.delenv("NONE", raising=False)
    assert expand_variables(text) == expanded


def test_a_variable_that_is_not_set(monkeypatch):
    monkeypatch.delenv("NONE", raising=False)
    with pytest.raises(ValueError, match="NONE, which is not set; export NONE="):
        expand_variables("a/${NONE}")
    assert expand_variables("a/${NONE}", keep_unset=True) == "a/${NONE}"
    kept = Example.model_validate({"path": "${NONE}/a"}, context={KEEP_UNSET: True})
    assert kept.path == "${NONE}/a"


def test_a_path_is_used_expanded_and_stored_as_written(monkeypatch):
    monkeypatch.setenv("A", "/runs")
    example = Example(path="${A}/b")
    assert example.path == "/runs/b" and isinstance(example.path, GivenPath)
    assert example.model_dump()["path"] == "${A}/b"
    assert Example.model_validate(example.model_dump()) == example
    assert type(Example(path="/runs/b").path) is str


@pytest.mark.parametrize(("given", "prefix"), [("a.bin", "a"), ("a.idx", "a"), ("a", "a"), ("a.bin.d/c", "a.bin.d/c")])
def test_a_pair_by_either_file(given, prefix):
    assert Example(prefix=given).prefix == prefix


@pytest.mark.parametrize(
    "given",
    [
        {"prefix": "a.bin.idx"},
        {"line": "a\nb"},
        {"line": "${A}"},
        {"path": "a\x1b"},
        {"count": True},
        {"rate": False},
        {"count": 0},
        {"rate": float("nan")},
        {"unknown": 1},
    ],
)
def test_what_is_refused(given):
    with pytest.raises(ValidationError):
        Example.model_validate(given)


def test_truth_values_where_they_belong():
    assert Example(switch=True).switch is True and Example(either=True).either is True


def test_kinds_within_an_annotation():
    assert {int, float, str} <= kinds_in(dict[str, int | list[float]])
    assert kinds_in(int) == {int}
