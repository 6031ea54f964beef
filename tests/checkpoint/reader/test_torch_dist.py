"""A native checkpoint's tensors, put together of their chunks."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties

from megatron_sky.checkpoint.reader.torch_dist import read_stored, weight_tensors
from megatron_sky.errors import CheckpointError
from tests.checkpoint.folders import rewrite


def stored(shape: tuple, *boxes: tuple[tuple, tuple], length: int = 4096) -> Metadata:
    """An index of one tensor in 32 bits, of chunks (corner, extent)."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    chunks = [ChunkStorageMetadata(torch.Size(corner), torch.Size(extent)) for corner, extent in boxes]
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(shape), chunks)
    places = {MetadataIndex("w", torch.Size(corner)): _StorageInfo("a", 0, length) for corner, _ in boxes}
    return Metadata({"w": entry}, storage_data=places)


COVERED = {
    "one": stored((4, 2), ((0, 0), (4, 2))),
    "a grid": stored((4, 2), *(((row, column), (2, 1)) for row in (0, 2) for column in (0, 1))),
    "bricks": stored((4, 2), ((0, 0), (3, 1)), ((3, 0), (1, 1)), ((0, 1), (1, 1)), ((1, 1), (3, 1))),
    "a scalar": stored((), ((), ())),
}


NOT_COVERED = {
    "a hole": stored((4, 2), ((0, 0), (3, 2))),
    "an overlap and a hole": stored((4,), ((0,), (2,)), ((1,), (2,))),
    "an edge": stored((4,), ((2,), (4,))),
    "nothing": stored((4, 0), ((0, 0), (4, 0))),
    "layers of nothing": stored((10**9, 0), ((0, 0), (10**9, 0))),
    "more than its bytes": stored((2000,), ((0,), (2000,))),
    "far more than its bytes": stored((2**40, 2**40), ((0, 0), (2**40, 2**40))),
}


@pytest.mark.parametrize("kind", [*COVERED, *NOT_COVERED])
def test_chunks_must_fill_a_tensor_once(kind, tmp_path):
    (tmp_path / "a").write_bytes(bytes(4096))
    (tmp_path / ".metadata").write_bytes(pickle.dumps((COVERED | NOT_COVERED)[kind]))
    if kind in COVERED:
        assert read_stored(tmp_path)["w"].shape == COVERED[kind].state_dict_metadata["w"].size
    else:
        with pytest.raises(CheckpointError, match=r"each once: a shard is missing|too few for it"):
            read_stored(tmp_path)


def test_two_tensors_of_one_name_are_refused(folder):
    """The norm before a layer has two spellings."""

    def spell_again(metadata):
        name = "decoder.layers.self_attention.linear_qkv.layer_norm_weight"
        found = next(key for key in metadata.state_dict_metadata if "layernorm" in key or "layer_norm" in key)
        other = "decoder.layers.input_layernorm.weight" if found == name else name
        metadata.state_dict_metadata[other] = metadata.state_dict_metadata[found]
        for index in [index for index in metadata.storage_data if index.fqn == found]:
            metadata.storage_data[replace(index, fqn=other)] = metadata.storage_data[index]

    before = weight_tensors(folder, read_stored(folder))
    assert all(np.isfinite(tensor.load()).all() for tensor in before.values() if tensor.dtype == "F32")
    rewrite(folder, spell_again)
    with pytest.raises(CheckpointError, match=r"is decoder\.layers\.0\.self_attention\.linear_qkv.*, and so is "):
        weight_tensors(folder, read_stored(folder))
