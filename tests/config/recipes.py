"""The smallest recipe, and what is said of one that is wrong."""

import pytest

from megatron_sky.config import load_config
from megatron_sky.errors import ConfigError

BASE = {
    "model": {"preset": "tiny"},
    "schedule": {"lr": 1e-3},
    "train": {"run_dir": "runs/x", "tokens": 1000, "global_batch_size": 8},
}


def problems(files, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(files, overrides)
    assert caught.value.exit_code != 0
    return [str(problem) for problem in caught.value.problems]
