"""run.json: what can be read of it, and that nothing of it is lost in silence."""

import json
import re

import pytest

from megatron_sky.trainer import run_record

ATTEMPTS = [{"started": "one", "hosts": ["n1"], "slurm": {"job_id": "7"}}, {"started": "two", "note": "a } and a {"}]


@pytest.fixture
def torn(tmp_path):
    """`torn(keep)`: a run folder whose run.json has its first `keep` characters."""

    def make(keep: int):
        run_record.write_attempts(tmp_path, ATTEMPTS, pytest.fail)
        text = (tmp_path / run_record.FILE).read_text()
        (tmp_path / run_record.FILE).write_text(text[:keep])
        return tmp_path

    return make


def test_written_and_read(tmp_path):
    run_record.write_attempts(tmp_path, ATTEMPTS, pytest.fail)
    assert run_record.read_attempts(tmp_path, pytest.fail) == ATTEMPTS
    assert run_record.read_attempts(tmp_path / "none", pytest.fail) == []


def test_cut_anywhere_it_gives_the_attempts_before_the_cut(torn):
    run_dir = torn(10**6)
    path = run_dir / run_record.FILE
    text = path.read_text()
    ends = [match.end() for match in re.finditer(r"^  \}", text, re.MULTILINE)]
    assert len(ends) == len(ATTEMPTS)
    for keep in range(len(text.rstrip())):
        path.write_text(text[:keep])
        warnings: list[str] = []
        found = run_record.read_attempts(run_dir, warnings.append)
        assert found == ATTEMPTS[: sum(keep >= end for end in ends)], text[:keep]
        assert len(warnings) == 1 and "is torn" in warnings[0]


@pytest.mark.parametrize("text", ["", "[1]", '{"attempts": 3}', '{"attempts": [3]}', "\x00" * 50, "not json at all"])
def test_what_is_no_history_is_kept_aside(text, tmp_path):
    path = tmp_path / run_record.FILE
    path.write_text(text)
    warnings = []
    assert run_record.read_attempts(tmp_path, warnings.append) == []
    run_record.write_attempts(tmp_path, ATTEMPTS, warnings.append)
    assert (tmp_path / "run.json.torn-1").read_text() == text and json.loads(path.read_text())["attempts"] == ATTEMPTS
    assert len(warnings) == 2 and "kept as run.json.torn-1" in warnings[1]


def test_a_start_after_a_tear_goes_on_with_what_is_left(torn, recipe, caplog):
    run_dir = torn(150)
    found = run_record.read_attempts(run_dir, lambda text: None)
    run_record.describe(run_dir, recipe(), layout="DP2", hosts=["n2"], device="cpu", resumed_from=None)
    after = run_record.read_attempts(run_dir, pytest.fail)
    assert after[:-1] == found == ATTEMPTS[:1] and after[-1]["layout"] == "DP2"
    assert (run_dir / "run.json.torn-1").is_file() and "kept as run.json.torn-1" in caplog.text


WHOLE = {"step_before": 3, "slurm": {"job_id": "7", "attempt": 0, "log": "slurm/a/log.txt"}}
WHOLE |= {"ended": {"exit_code": None, "step": 3, "action": "requeue", "reason": "r"}}


@pytest.mark.parametrize(
    "change",
    [
        *({"step_before": "3"}, {"slurm": None}, {"slurm": []}, {"slurm": {}}, {"ended": None}, {"ended": {}}),
        *({"slurm": {"job_id": 7}}, {"slurm": {"job_id": "7", "log": "../../elsewhere/log.txt"}}),
        *({"slurm": {"job_id": "7", "log": "/etc/log.txt"}}, {"slurm": {"job_id": "7", "log": 3}}),
    ],
    ids=str,
)
def test_an_attempt_of_another_shape_is_a_tear(change, tmp_path):
    assert run_record.is_attempt(WHOLE)
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [WHOLE, WHOLE | change, WHOLE]}))
    told = []
    assert run_record.read_attempts(tmp_path, told.append) == [WHOLE]
    assert "of its attempts 1 can be read" in told[0]
