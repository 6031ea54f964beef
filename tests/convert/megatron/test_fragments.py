"""The distributed optimizer's flat parts on a grid, as megatron-core up to 0.13 saves them."""

import pickle

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_sky.convert.megatron.fragments import fragments, is_fragmented
from megatron_sky.errors import CheckpointError

KEY = "optimizer.state.exp_avg."


def save(folder, tensors: dict, grids: dict, notes: bool = True) -> None:
    """Each tensor cut by its grid; each part flat, and cut once more where a data-parallel rank ends."""
    entries, storage, mcore = {}, {}, {}
    with open(folder / "__0_0.distcp", "wb") as file:
        for name, whole in tensors.items():
            grid = grids[name]
            cell = [size // parts for size, parts in zip(whole.shape, grid, strict=True)]
            entry = dcp.TensorStorageMetadata(
                dcp.TensorProperties(dtype=torch.float32), torch.Size([*grid, int(np.prod(cell))]), []
            )
            for place in np.ndindex(*grid):
                part = whole[tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, cell, strict=True))].reshape(-1)
                for start, flat in ((0, part[:5]), (5, part[5:])):
                    begin = file.tell()
                    torch.save(flat.reshape((1,) * len(grid) + (-1,)).clone(), file)
                    corner = torch.Size([*place, start])
                    entry.chunks.append(dcp.ChunkStorageMetadata(corner, torch.Size([*[1] * len(grid), len(flat)])))
                    index = dcp.MetadataIndex(KEY + name, corner)
                    storage[index] = _StorageInfo("__0_0.distcp", begin, file.tell() - begin)
            entries[KEY + name] = entry
            mcore[KEY + name] = {"nd_reformulated_orig_global_shape": tuple(whole.shape)} if notes else {}
    described = dcp.Metadata(entries, storage_data=storage, storage_meta=dcp.StorageMeta())
    described.mcore_data = mcore
    (folder / ".metadata").write_bytes(pickle.dumps(described))


def test_parts_are_put_together(tmp_path):
    whole = {"output_layer.weight": torch.randn(8, 6), "decoder.layers.mlp.linear_fc2.weight": torch.randn(3, 4, 8)}
    save(tmp_path, whole, {"output_layer.weight": (2, 1), "decoder.layers.mlp.linear_fc2.weight": (3, 1, 2)})
    assert is_fragmented(tmp_path, "optimizer.state.")
    read = {name: tensor.load().view(np.float32) for name, tensor in fragments(tmp_path, KEY).items()}
    assert np.array_equal(read["output_layer.weight"], whole["output_layer.weight"])
    for number in range(3):
        layer = read[f"decoder.layers.{number}.mlp.linear_fc2.weight"]
        assert np.array_equal(layer, whole["decoder.layers.mlp.linear_fc2.weight"][number])


def test_parts_of_an_unknown_shape_are_refused(tmp_path):
    save(tmp_path, {"output_layer.weight": torch.randn(8, 6)}, {"output_layer.weight": (2, 1)}, notes=False)
    assert not is_fragmented(tmp_path, "optimizer.state.")
    with pytest.raises(CheckpointError, match=r"output_layer.weight is in flat parts.*before 0.7"):
        fragments(tmp_path, KEY)
