"""A save holds one moment of the run."""

import pytest

from tests.slow import slow_except
from tests.trainer.test_parity import run_training


def stored_tensors(folder) -> dict:
    """Key -> tensor of everything in a torch_dist folder, read by torch alone."""
    import torch
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", slow_except(["parallel.tp_size=1", "parallel.pp_size=2"], "parallel.tp_size=1"))
def test_weights_are_those_of_the_last_update(dtype, layout, ranks, recipe, tmp_path):
    """With the parameters' gathering overlapped, most of a rank's weights are old until the next forward pass."""
    from megatron_sky.config import dump_config

    config = recipe(
        f"train.run_dir={tmp_path / 'run'}",
        f"precision.dtype={dtype}",
        layout,
        "train.max_steps=3",
        "schedule.lr=1e-2",
        "parallel.overlap_grad_reduce=true",
        "parallel.overlap_param_gather=true",
        "parallel.grad_bucket_size=5000",
        "checkpoint.interval=1 steps",
        "validation.sets=[]",
    )
    ranks(4 if "pp" in layout else 2, run_training, dump_config(config))
    for step in (2, 3):
        tensors = stored_tensors(tmp_path / f"run/checkpoints/step_{step:07d}")
        prefix = "optimizer.state.param."
        masters = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        assert len(masters) > 5
        for name, master in masters.items():
            weight = tensors[name]
            assert (weight.float() - master.reshape(weight.shape).to(weight.dtype).float()).abs().max() == 0, name
