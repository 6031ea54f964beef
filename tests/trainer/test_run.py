"""What a run says as it starts, and what it leaves in its process."""

from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from tests.faults.harness import run_hurt
from tests.recipes import config_of


def demand_another_numpy(config):
    from megatron_sky.distributed import requirements

    found = [requirements.compare("numpy", "<1.0", "1.26.4")]
    requirements.requirements = lambda: found


def test_a_run_outside_of_the_tested_versions_says_so_once(recipe, never_a_rank):
    config = recipe("train.max_steps=1")
    (ended,) = never_a_rank(1, run_hurt, dump_config(config), demand_another_numpy)
    assert ended.code == 0, ended.message
    log = (Path(config.train.run_dir) / "logs/rank_00000.log").read_text()
    assert log.count("numpy 1.26.4 is newer than tested (<1.0)") == 1


def models_left_by_a_run(info, config_text: str) -> int:
    """How many more wrapped models there are in this process after a run than before."""
    import gc

    from megatron_sky.trainer.run import train

    config = config_of(config_text)

    def num_models() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "DistributedDataParallel" for thing in gc.get_objects())

    before = num_models()
    train(config, info)
    return num_models() - before


@pytest.mark.parametrize(
    "overrides",
    [
        ("parallel.distributed_optimizer=true",),
        ("parallel.distributed_optimizer=false", "parallel.overlap_grad_reduce=true"),
        ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
        ("parallel.pp_size=2", "parallel.vpp_size=2", "parallel.overlap_grad_reduce=true"),
    ],
)
def test_a_run_that_is_over_leaves_no_model(overrides, recipe, ranks):
    """It would keep its optimizer and all its process groups, each with three threads."""
    config = recipe("train.max_steps=2", "train.micro_batch_size=2", *overrides)
    assert ranks(2, models_left_by_a_run, dump_config(config)) == [0, 0]
