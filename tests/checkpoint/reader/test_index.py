"""The index of a torch_dist folder: checked once, for conversion, diff, generation and training alike."""

import pytest
from torch.distributed.checkpoint.metadata import Metadata

from megatron_sky.checkpoint.reader import index as indexes
from megatron_sky.checkpoint.reader.diff import differences
from megatron_sky.checkpoint.reader.torch_dist import read_stored
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.checkpoint.folders import rewrite
from tests.checkpoint.reader.test_pickles import told_when_loaded

NORM = "decoder.final_layernorm.weight"


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
