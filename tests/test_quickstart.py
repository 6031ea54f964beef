"""What the quickstart does with a folder that is there already."""

import pytest

from megatron_sky import quickstart
from megatron_sky.config import dump_config, load_config
from megatron_sky.errors import RunError


def test_another_seeds_run_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("QUICKSTART", str(tmp_path))
    recipe = [quickstart.recipes() / "quickstart" / name for name in ("model.yaml", "train.yaml")]
    config = load_config(recipe, ["data.seed=5", "train.seed=5"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(dump_config(config), encoding="utf-8")
    made = []
    monkeypatch.setattr(quickstart, "make_data", lambda out, seed: made.append(seed) or 1 / 0)
    with pytest.raises(RunError, match=r"--seed 7: .*run holds a run of --seed 5(.|\n)*--out, or --seed 5"):
        quickstart.run(tmp_path, seed=7)
    assert not made
    for folder, seed in ((tmp_path, 5), (tmp_path / "new", 7)):
        with pytest.raises(ZeroDivisionError):
            quickstart.run(folder, seed=seed)
    assert made == [5, 7]
