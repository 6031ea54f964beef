import pytest

from megatron_sky.corpus.skips import (
    Failure,
    add_skips,
    clear_failure,
    input_of,
    read_failures,
    read_skips,
    skipped_tasks,
    write_failure,
)
from megatron_sky.errors import ConfigError

UNITS = [["a.warc"], ["b.warc", "c.warc", "d.warc"]]


def test_failures_are_there_until_the_task_is_done(tmp_path):
    assert read_failures(tmp_path, "read") == {}
    write_failure(tmp_path, "read", 1, "OSError: no", 1)
    write_failure(tmp_path, "read", 1, "OSError: no again", 2)
    assert read_failures(tmp_path, "read") == {1: Failure("OSError: no again", 2)}
    clear_failure(tmp_path, "read", 1)
    clear_failure(tmp_path, "read", 1)
    assert read_failures(tmp_path, "read") == {}


def test_what_is_skipped_is_noted_with_its_error(tmp_path):
    write_failure(tmp_path, "read", 1, "OSError: no", 2)
    add_skips(tmp_path, ["read:1"], UNITS)
    add_skips(tmp_path, ["clean:0", "read:1"], UNITS)
    first, second = read_skips(tmp_path)
    assert (first.error, first.input, second.error) == ("OSError: no", "b.warc and 2 more", "")
    assert skipped_tasks(read_skips(tmp_path), "clean") == {0} and input_of(["a"]) == "a"
    (tmp_path / "logs" / "read" / "completions").mkdir(parents=True)
    (tmp_path / "logs" / "read" / "completions" / "00001").touch()
    add_skips(tmp_path, ["read:1"], UNITS)  # the same command again


@pytest.mark.parametrize(
    "given, rule",
    [
        ("read", "must be PASS:TASK"),
        ("read:2", "tasks from 0 to 1"),
        ("read:-1", "must be PASS:TASK"),
        ("buckets:0", "of the passes read, paragraphs, clean, finish"),
        ("read:0", "is done, and can't be skipped any more"),
    ],
)
def test_tasks_that_can_not_be_skipped_are_named(tmp_path, given, rule):
    (tmp_path / "logs" / "read" / "completions").mkdir(parents=True)
    (tmp_path / "logs" / "read" / "completions" / "00000").touch()
    with pytest.raises(ConfigError, match=f"--skip-task = '{given}': .*{rule}"):
        add_skips(tmp_path, [given], UNITS)
    assert read_skips(tmp_path) == ()
