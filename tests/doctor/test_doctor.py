"""The doctor's whole examination: facts, trials and findings together."""

import pytest

from megatron_sky import doctor
from megatron_sky.doctor import facts, trials
from tests.doctor.test_findings import FINE, NODE


@pytest.mark.parametrize(
    ("gpus", "asked", "ranks"),
    [(NODE["gpus"], None, 8), ([], None, 2), (NODE["gpus"], 3, 3), (NODE["gpus"][:1], None, 1)],
)
def test_a_rank_for_each_gpu(gpus, asked, ranks, monkeypatch, tmp_path):
    tried = []
    monkeypatch.setattr(facts, "gather", lambda: NODE | {"gpus": gpus})
    monkeypatch.setattr(trials, "ranks_talk", lambda world: tried.append(world) or FINE["ranks"])
    monkeypatch.setattr(trials, "disk_speed", lambda run_dir, size: FINE["disk"] | {"folder": f"{run_dir}: {size}"})
    report = doctor.examine(tmp_path, ranks=asked, disk_mib=7)
    assert tried == [ranks] and report["trials"]["disk"]["folder"] == f"{tmp_path}: 7"
    assert report["healthy"] == (not any(finding["blocking"] for finding in report["findings"]))


def test_what_blocks_is_not_healthy(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "gather", lambda: NODE)
    monkeypatch.setattr(trials, "ranks_talk", lambda world: FINE["ranks"] | {"ok": False, "reason": "rank 1: gone"})
    monkeypatch.setattr(trials, "disk_speed", lambda run_dir, size: FINE["disk"])
    report = doctor.examine(tmp_path)
    assert not report["healthy"] and any("rank 1: gone" in finding["what"] for finding in report["findings"])
