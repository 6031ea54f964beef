"""Recorded checkpoints, to be damaged."""

import shutil
from pathlib import Path

import pytest

from tests.checkpoint.record import RECORDED


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a recorded checkpoint, to be damaged."""
    (recorded,) = [each for each in RECORDED.iterdir() if each.name.startswith("0.16")]
    return shutil.copytree(recorded / "checkpoint", tmp_path / "step_0000001")
