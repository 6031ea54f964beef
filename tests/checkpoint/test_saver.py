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


def run_where_rank_0_can_not_write(info, config_text, place: str) -> None:
    """Trains while the first write of `place` fails on rank 0 as on a full disk."""
    from megatron_sky.distributed import device

    device.setup(num_threads=1)
    import torch
    from megatron.core.dist_checkpointing import serialization
    from torch.distributed.checkpoint import FileSystemWriter

    owner, name = {"common.pt": (torch, "save"), ".metadata": (FileSystemWriter, "finish")}.get(
        place, (serialization, "save_config")
    )
    original, left = getattr(owner, name), [1]

    def failing(*args, **kwargs):
        is_meant = name != "save" or str(args[1]).endswith(place)  # megatron-core saves into memory too
        if info.rank == 0 and left and is_meant:
            left.pop()
            raise (
                RuntimeError("unexpected pos 704 vs 598") if name == "save" else OSError(28, "No space left on device")
            )
        return original(*args, **kwargs)

    setattr(owner, name, failing)
    try:
        run_training(info, config_text)
    finally:
        setattr(owner, name, original)
    assert bool(left) == (info.rank != 0)


@pytest.mark.parametrize("place", ["common.pt", ".metadata", "metadata.json"])
def test_what_rank_0_alone_can_not_write_is_a_failed_save_on_every_rank(place, ranks, recipe, tmp_path):
    from megatron_sky.config import dump_config
    from megatron_sky.monitor.metrics import read_metrics

    run_dir = tmp_path / "run"
    config = recipe(
        f"train.run_dir={run_dir}", "train.max_steps=3", "checkpoint.interval=1 steps", "validation.sets=[]"
    )
    ranks(2, run_where_rank_0_can_not_write, dump_config(config), place)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_0000002", "step_0000003"]
    (failed,) = [event.fields for event in read_metrics(run_dir).events if event.event == "checkpoint_failed"]
    assert failed["step"] == 1 and "bytes are free" in failed["reason"]
