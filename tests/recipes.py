"""Recipes that travel to rank processes as texts."""

import tempfile
from pathlib import Path

from megatron_sky.config import Config, load_config


def config_of(text: str) -> Config:
    """The recipe of a file that holds `text`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config([path])
