"""Sources and sets: names that are told apart, weights that are numbers or ramps."""

import pytest
from pydantic import ValidationError

from megatron_sky.config.sections.data import DataConfig, MegatronOrder, Ramp, SourceConfig, ValidationConfig


def sources(*names: str) -> list[dict]:
    return [{"name": name, "path": f"tokens/{name}"} for name in names]


@pytest.mark.parametrize(("section", "key"), [(DataConfig, "train"), (ValidationConfig, "sets")])
def test_names_are_given_once(section, key):
    assert len(getattr(section.model_validate({key: sources("a", "b")}), key)) == 2
    with pytest.raises(ValidationError, match="more than once: a, b"):
        section.model_validate({key: sources("b", "a", "c", "a", "b")})


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n"])
def test_a_name_is_fit_for_logs_and_files(name):
    with pytest.raises(ValidationError):
        SourceConfig(name=name, path="x")


@pytest.mark.parametrize(
    ("weight", "expected"), [(0, 0.0), (0.25, 0.25), ({"start": 1, "end": 0}, Ramp(start=1.0, end=0.0))]
)
def test_weights(weight, expected):
    assert SourceConfig.model_validate({"name": "a", "path": "x", "weight": weight}).weight == expected


@pytest.mark.parametrize("weight", [-1, {"start": 1}, {"start": -1, "end": 1}, "heavy", True, float("inf")])
def test_what_is_no_weight(weight):
    with pytest.raises(ValidationError):
        SourceConfig.model_validate({"name": "a", "path": "x", "weight": weight})


@pytest.mark.parametrize("split", ["969, 30, 1", "1", "99/1", ".9,.1", "100,0,0"])
def test_a_split(split):
    assert MegatronOrder(split=split).split == split


@pytest.mark.parametrize(
    ("split", "rule"),
    [
        ("0,1", "leaves no document for training"),
        ("1,2,3,4", "one to three numbers"),
        ("-1,2", "one to three numbers"),
        ("", "one to three numbers"),
        ("9" * 5 + "x", "one to three numbers"),
    ],
)
def test_a_split_that_is_none(split, rule):
    with pytest.raises(ValidationError, match=rule):
        MegatronOrder(split=split)
