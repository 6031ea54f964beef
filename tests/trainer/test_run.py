"""What a run says as it starts."""

from pathlib import Path

from megatron_sky.config import dump_config
from tests.faults.harness import run_hurt


def demand_another_numpy(config):
    from megatron_sky.distributed import requirements

    found = [requirements.compare("numpy", "<1.0", "1.26.4")]
    requirements.requirements = lambda: found


def test_a_run_outside_of_the_tested_versions_says_so_once(recipe, ranks):
    config = recipe("train.max_steps=1")
    (ended,) = ranks(1, run_hurt, dump_config(config), demand_another_numpy)
    assert ended.code == 0, ended.message
    log = (Path(config.train.run_dir) / "logs/rank_00000.log").read_text()
    assert log.count("numpy 1.26.4 is newer than tested (<1.0)") == 1
