import json

import pytest

from megatron_sky.migrate.recipe import translate
from megatron_sky.migrate.translation import TO_GIVE


def sources(*words: str) -> list[tuple[str, str, object]]:
    return [(one["name"], one["path"], one["weight"]) for one in translate(words).recipe["data"]["train"]]


def test_lists_in_files(tmp_path):
    (tmp_path / "list.txt").write_text("0.7 d/web\n0.3 d/books\n")
    assert sources("--data-args-path", str(tmp_path / "list.txt")) == [("web", "d/web", 0.7), ("books", "d/books", 0.3)]
    splits = {"train": ["0.5", "d/a", "0.5", "e/a"], "valid": "v/a v/b", "test": None}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    done = translate(["--per-split-data-args-path", str(tmp_path / "splits.json")])
    assert [one["name"] for one in done.recipe["data"]["train"]] == ["a", "a_1"]
    assert done.recipe["validation"]["sets"] == [{"name": "a", "path": "v/a"}, {"name": "b", "path": "v/b"}]
    assert not any("data.train" in line for line in done.to_give)


@pytest.mark.parametrize(
    ("flag", "text", "why"),
    [
        ("data-args-path", None, "is not a file here"),
        ("data-args-path", "", "has no value"),
        ("data-args-path", "x" * 300_000, "more than 262,144 characters"),
        ("data-args-path", b"\xff\xfe\x00", "can't be read"),
        ("per-split-data-args-path", None, "is not a file here"),
        ("per-split-data-args-path", "0.7 d/web", "is no JSON with lists"),
        ("per-split-data-args-path", "[1]", "is no JSON with lists"),
        ("per-split-data-args-path", "[" * 100_000, "is no JSON with lists"),
        ("per-split-data-args-path", '{"valid": []}', "is no JSON with lists"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, flag, text, why):
    path = tmp_path / "list"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = translate([f"--{flag}", str(path)])
    assert done.recipe["data"]["train"] == TO_GIVE
    assert any(line.startswith("data.train: ") and why in line for line in done.to_give), done.to_give


def test_a_file_that_a_variable_names():
    assert any("${LIST} is not a file here" in line for line in translate(["--data-args-path", "${LIST}"]).to_give)
