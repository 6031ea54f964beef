"""`corpus build --executor slurm` on a real Slurm: arrays that wait for each other, split at its limit."""

import json
from pathlib import Path

import pytest
import zstandard

from tests.slurm.cluster import wait_until

pytest.importorskip("datatrove", reason="pip install 'megatron-sky[crawl]'")

RECIPE = """
out: {out}
sources:
  - {{name: a, kind: jsonl, paths: [a.jsonl]}}
  - {{name: b, kind: jsonl, paths: [b.jsonl]}}
  - {{name: c, kind: jsonl, paths: [c.jsonl]}}
heuristics: {{enabled: false}}
recurrence: {{enabled: false}}
duplicates: {{exact: false, url: false, near: {{enabled: false}}}}
outputs: [{{name: all}}]
execution:
  retries: 0
  workers: 1
  slurm: {{partition: main, time: "00:10:00", max_array_size: 2, memory_gb: 1}}
"""


def texts(folder: Path) -> bytes:
    return b"".join(zstandard.open(path, "rb").read() for path in sorted((folder / "text" / "all").glob("*.zst")))


@pytest.mark.slow
def test_a_corpus_is_built_by_jobs_and_goes_on_after_a_failure(cluster, sky, tmp_path):
    for name in "abc":
        lines = [json.dumps({"text": f"The {number} documents of {name} are what was read."}) for number in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    for name in ("here", "jobs"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(out=name))
    assert sky("corpus", "build", "here.yaml").returncode == 0

    def build() -> list[str]:
        done = sky("corpus", "build", "jobs.yaml", "--executor", "slurm")
        assert done.returncode == 0, done.stderr
        jobs = [line.split()[-1] for line in done.stderr.splitlines() if ": job " in line]
        wait_until(lambda: all(ended(cluster, job) for job in jobs), 240, lambda: cluster.client("squeue"), pause=1)
        return jobs

    in_its_way = tmp_path / "jobs" / "ledger" / "read" / "00002.json"
    in_its_way.mkdir(parents=True)
    assert len(build()) == 5
    shown = sky("corpus", "status", "jobs.yaml").stdout
    assert "2 of 3 tasks" in shown and "task 2 failed once (IsADirectoryError" in shown and "c.jsonl" in shown
    assert len(list((tmp_path / "jobs" / "logs" / "read" / "slurm_logs").glob("*.out"))) > 2, "two arrays"
    in_its_way.rmdir()
    build()
    assert texts(tmp_path / "jobs") == texts(tmp_path / "here") != b""
    assert "failed" not in sky("corpus", "status", "jobs.yaml").stdout


def ended(cluster, job: str) -> bool:
    return cluster.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED")
