"""Models under names of their own."""

from types import SimpleNamespace

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.evaluate import models


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    monkeypatch.setattr(
        models, "open_checkpoint", lambda path, name=None: SimpleNamespace(path=path, name=name or path.name)
    )


def test_a_name_or_the_paths(tmp_path):
    folder = tmp_path / "lr=1e-3"
    folder.mkdir()
    found = models.open_models(["runs/a", "b=runs/c", str(folder), "=runs/d"])
    assert [model.name for model in found] == ["a", "b", "lr=1e-3", "d"]
    assert str(found[1].path) == "runs/c" and found[2].path == folder
    assert models.open_models([]) == []


@pytest.mark.parametrize("given", [["x/a", "y/a"], ["a=x", "a=y"], ["a b=x", "a_b=y"]])
def test_two_of_one_name_would_share_their_files(given):
    with pytest.raises(ConfigError, match="two of them have this name"):
        models.open_models(given)
