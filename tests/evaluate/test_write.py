"""Where results go when their folder, or what comes after them, fails."""

import pytest

from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import RunError
from megatron_sky.evaluate.write import check_out, print_partial_on_error


def test_the_folders_are_made_and_left_empty(tmp_path):
    check_out(None)
    check_out(tmp_path / "a/b")
    assert [each.name for each in tmp_path.rglob("*")] == ["a", "b", "documents"]


def test_what_had_been_scored_is_shown_before_an_error(capsys):
    scored = ["first"]
    with pytest.raises(RunError), print_partial_on_error(RankInfo(), lambda: " ".join(scored)):
        scored.append("second")
        raise RunError("no space")
    assert capsys.readouterr().out == "first second\n"
    with pytest.raises(KeyboardInterrupt), print_partial_on_error(RankInfo(), lambda: ""):
        raise KeyboardInterrupt
    with print_partial_on_error(RankInfo(), lambda: "all"):
        pass
    assert capsys.readouterr().out == ""
