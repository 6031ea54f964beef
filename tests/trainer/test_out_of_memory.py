"""The words for a GPU that is full."""

import pytest

from megatron_sky.distributed.topology import Layout
from megatron_sky.errors import RunError
from megatron_sky.trainer import out_of_memory


@pytest.mark.parametrize("overrides", [[], ["parallel.tp_size=4", "train.recompute=full", "model.num_query_groups=4"]])
def test_a_full_gpu_gives_three_fixes(overrides, recipe, tmp_path):
    import torch

    config = recipe("train.micro_batch_size=2", "profile.memory_snapshot=true", *overrides)
    layout = Layout.of(config.parallel, 4)
    with pytest.raises(RunError) as caught, out_of_memory.explained(config, layout, rank=3, run_dir=tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    text = str(caught.value)
    assert "rank 3" in text and "fix 3:" in text and "fix 4:" not in text
    assert "train.micro_batch_size=1" in text
    assert ("parallel.sequence_parallel=true" in text) == bool(overrides)
    assert ("train.recompute" in text) == (not overrides)


def test_every_fix_is_a_recipe(recipe):
    """What is advised loads, and is not what already stands there."""
    config = recipe()
    layout = Layout.of(config.parallel, 1)
    advised = [
        each.split(":")[0].split(" ")[0] for each in out_of_memory.fixes(config, layout) if "=" in each.split(":")[0]
    ]
    assert len(advised) >= 3
    for override in advised:
        assert recipe(override) != config
