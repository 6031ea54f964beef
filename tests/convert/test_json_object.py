"""JSON of other programs: an object whose keys each stand in it once, or an error that names the file."""

import pytest

from megatron_sky.convert.json_object import only_once, read_object
from megatron_sky.errors import CheckpointError


def test_an_object_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": {"b": [1, null]}, "c": ""}')
    assert read_object(path) == {"a": {"b": [1, None]}, "c": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is no JSON object"),
        ("null", "is no JSON object"),
        ("", "can't be read"),
        ('{"a": 1', "can't be read"),
        ('{"a": 1, "a": 2}', "'a' stands in it twice"),
        ('{"outer": {"b": 1, "b": 1}}', "'b' stands in it twice"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "can't be read"),
    ],
)
def test_anything_else_is_named(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_object(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.json: is missing\n  fix: "):
        read_object(tmp_path / "none.json")


def test_pairs_keep_their_order():
    assert list(only_once([("b", 1), ("a", 2)])) == ["b", "a"]
    assert only_once([]) == {}
