"""The example `paper_in_miniature`, run as a user runs it: what the report found must appear in its numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_what_the_report_found_appears(tmp_path):
    script = ROOT / "examples" / "paper_in_miniature" / "run.sh"
    done = subprocess.run(
        ["bash", str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
    )
    told = done.stdout.splitlines()[-6:]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [line[:3] for line in told] == ["yes"] * 6, told
    assert (tmp_path / "run" / "report.html").stat().st_size > 50_000
