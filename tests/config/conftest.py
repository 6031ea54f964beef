"""Recipes as files."""

from pathlib import Path

import pytest
import yaml


@pytest.fixture
def write(tmp_path):
    def write(text: str | dict, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return path

    return write
