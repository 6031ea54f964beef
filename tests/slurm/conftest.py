"""The cluster that the tests of this folder share, and commands that talk to it."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from tests.slurm.cluster import Cluster, why_not

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Two nodes of 16 cores and 8 GPUs, as far as Slurm knows; one for all tests, which take turns on it."""
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm cluster here: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder:
        Path(folder).chmod(0o755)  # munge wants a folder that others may enter
        started = Cluster(Path(folder))
        try:
            started.start()
            started.environment["PYTHONPATH"] = str(ROOT)
            started.environment["XDG_CONFIG_HOME"] = folder  # no site profile of whoever runs the tests
            yield started
        finally:
            started.stop()


@pytest.fixture
def sky(cluster, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """`sky("slurm", "status", ...)`: the finished command, run in this test's folder with the cluster's Slurm."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "megatron_sky", *map(str, arguments)],
            env=cluster.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def recipe_file(recipe, tmp_path) -> Callable[..., Path]:
    """`recipe_file("key=value", ...)`: the tiny recipe as one file."""

    def write(*overrides: str) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(dump_config(recipe(*overrides)), encoding="utf-8")
        return path

    return write
