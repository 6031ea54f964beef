"""The index of a torch_dist folder: checked once, for conversion, diff, generation and training alike."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties

from megatron_sky.checkpoint.reader import index as indexes
from megatron_sky.checkpoint.reader.diff import differences
from megatron_sky.checkpoint.reader.torch_dist import read_stored, weight_tensors
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from megatron_sky.files import write_json
from tests.checkpoint.reader.test_pickles import told_when_loaded
from tests.checkpoint.record import RECORDED

NORM = "decoder.final_layernorm.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a recorded checkpoint, to be damaged."""
    (recorded,) = [each for each in RECORDED.iterdir() if each.name.startswith("0.16")]
    return shutil.copytree(recorded / "checkpoint", tmp_path / "step_0000001")


def rewrite(folder: Path, change) -> None:
    """Has `change(metadata)` change the index; the manifest is made to agree."""
    from megatron_sky.checkpoint import store

    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    records = store.read_manifest(folder) | store.hash_files(folder, [".metadata"])
    write_json(folder / store.MANIFEST, store.manifest_of(1, records))


def place_of(metadata: Metadata, key: str = NORM):
    return next(info for index, info in metadata.storage_data.items() if index.fqn == key)


def entry_of(metadata: Metadata):
    return metadata.state_dict_metadata[NORM]


def set_place(**fields):
    return lambda metadata: vars(place_of(metadata)).update(fields)


def set_chunk(**fields):
    return lambda metadata: vars(entry_of(metadata).chunks[0]).update(fields)


def remove_place(metadata):
    for index in [index for index in metadata.storage_data if index.fqn == NORM]:
        del metadata.storage_data[index]


def other_key(metadata):
    metadata.storage_data["text"] = place_of(metadata)


BAD = {
    "another folder": (set_place(relative_path="../other/__0_0.distcp"), "lie in '../other/__0_0.distcp'"),
    "a folder between": (set_place(relative_path="a/../../x"), r"lie in 'a/../../x'"),
    "an absolute path": (set_place(relative_path="/etc/passwd"), "lie in '/etc/passwd'"),
    "no path": (set_place(relative_path=""), "lie in ''"),
    "a number for a path": (set_place(relative_path=3), "is no index of tensors"),
    "a negative offset": (set_place(offset=-1), f"{NORM}: offset and length"),
    "a length of words": (set_place(length="many"), f"{NORM}: offset and length"),
    "a transform": (set_place(transform_descriptors=["zstd"]), "compressed or encoded"),
    "a place that is none": (remove_place, f"says nowhere where {NORM}"),
    "a key that is none": (other_key, "text among its places is no tensor's name"),
    "a negative size": (set_chunk(sizes=(-4,)), f"{NORM}: sizes"),
    "sizes of another length": (set_chunk(sizes=(2, 2)), "is no part of"),
    "sizes of nothing": (set_chunk(sizes=None), f"{NORM}: sizes"),
    "offsets of fractions": (set_chunk(offsets=(0.5,)), f"{NORM}: offsets"),
    "no chunks": (lambda metadata: vars(entry_of(metadata)).pop("chunks"), "is no index of tensors"),
    "no properties": (lambda metadata: vars(entry_of(metadata)).update(properties=3), "is no index of tensors"),
    "no places": (lambda metadata: vars(metadata).update(storage_data=None), "is no index of tensors"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_index_that_can_not_be_meant_is_refused(kind, folder):
    change, said = BAD[kind]
    rewrite(folder, change)
    for read in (indexes.read_index, indexes.as_torch):
        with pytest.raises(CheckpointError, match=rf"\.metadata: .*{said}"):
            read(folder / ".metadata")


def test_a_path_outside_is_refused_by_every_reader(folder, ranks):
    rewrite(folder, set_place(relative_path="../other/__0_0.distcp"))
    said = r"'../other/__0_0\.distcp', which is no file of the folder"
    for read in (open_source, read_stored, lambda path: differences(path, path)):
        with pytest.raises(CheckpointError, match=said):
            read(folder)
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert "../other/__0_0.distcp" in told


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
