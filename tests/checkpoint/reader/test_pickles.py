"""A checkpoint that holds a program is refused, wherever it hides it, and the program does not run."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from enum import Enum
from pathlib import Path, PurePosixPath

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItemType

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader import index as indexes
from megatron_sky.checkpoint.reader import pickles
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.errors import CheckpointError
from tests.checkpoint.record import RECORDED

FINAL_NORM = "decoder.final_layernorm._extra_state/shard_0_1"
COMMON = "common_state/shard_0_1"


class Bomb:
    """What a hostile pickle does: calls a function of its choice."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def as_bytes(value: object) -> torch.Tensor:
    """As Transformer Engine's modules give their extra state."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def plant(folder: Path, key: str, value: object) -> None:
    """Puts `value` in the place of an object of the checkpoint; the manifest agrees."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    (at,) = [each for each in index.storage_data if each.fqn == key]
    place = index.storage_data[at]
    with open(folder / place.relative_path, "ab") as file:
        place.offset = file.tell()
        torch.save(value, file)
        place.length = file.tell() - place.offset
        place.transform_descriptors = None
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    manifest = json.loads((folder / store.MANIFEST).read_text())
    manifest["files"] = {name: r.to_dict() for name, r in store.hash_files(folder, store.files_of(folder)).items()}
    (folder / store.MANIFEST).write_text(json.dumps(manifest))


def told_when_loaded(info, folder: str) -> str:
    from megatron_sky.checkpoint import state
    from tests.checkpoint.record import opened, small

    entered, build = opened(small("none"))
    with entered as context:
        model, _ = build(context)
        try:
            state.load(Path(folder), context=context, chunks=model.chunks)
        except CheckpointError as error:
            return str(error)
        return ""


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint("0.16")`: a copy of the one recorded with that version."""

    def copied(version: str) -> Path:
        (recorded,) = [each for each in RECORDED.iterdir() if each.name.startswith(version)]
        return shutil.copytree(recorded / "checkpoint", tmp_path / "checkpoint")

    return copied


@pytest.mark.parametrize("version", ["0.16", "0.19"])
@pytest.mark.parametrize("hidden", [lambda bomb: [bomb], lambda bomb: [as_bytes({"scale_fwd": bomb})]])
def test_a_program_as_a_modules_extra_state(hidden, version, checkpoint, ranks, tmp_path):
    folder = checkpoint(version)
    plant(folder, FINAL_NORM, hidden(Bomb(tmp_path / "ran")))
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert "_extra_state" in told and "mkdir" in told and "it was not run" in told
    assert not (tmp_path / "ran").exists()


def test_a_program_as_what_is_no_tensor(checkpoint, ranks, tmp_path):
    """Without common.pt megatron-core 0.19 reads this object; 0.16 misses the file, and that is told."""
    folder = checkpoint("0.19")
    plant(folder, COMMON, [Bomb(tmp_path / "ran")])
    (folder / "common.pt").unlink()
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert "mkdir" in told or "common.pt" in told
    assert not (tmp_path / "ran").exists()


def test_a_program_as_the_index_of_tensors(checkpoint, ranks, tmp_path):
    folder = checkpoint("0.19")
    (folder / "common.pt").unlink()  # what is read first then is the index
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert ".metadata" in told and "mkdir" in told
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def transformer_engine(monkeypatch):
    """A module of its recipes' names."""
    names = ("transformer_engine", "transformer_engine.common", "transformer_engine.common.recipe")
    made = [types.ModuleType(name) for name in names]
    for module in made:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    made[-1].DelayedScaling = type("DelayedScaling", (), {"__module__": names[-1]})
    made[-1].Format = Enum("Format", {"E4M3": (448, 448), "HYBRID": (448, 57344)}, module=names[-1])
    return made[-1]


def test_a_state_of_scales_is_read(transformer_engine):
    recipe = transformer_engine.DelayedScaling()
    recipe.amax_history_len = 64
    state = {"recipe": recipe, "scale_fwd": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1, "names": ("a",)}}
    pickles.check_extra_state(as_bytes(state), "here")
    pickles.check_extra_state(torch.empty(0, dtype=torch.uint8), "here")
    pickles.check_extra_state(None, "here")


class AsStorage(Bomb):
    """Hides the program in what a tensor's numbers are read from."""

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Bomb(self.path)),)


@pytest.mark.parametrize("kind", [Bomb, AsStorage])
def test_a_state_that_is_a_program_is_refused(kind, tmp_path):
    with pytest.raises(CheckpointError, match=r"here: .*(mkdir|as data)"):
        pickles.check_extra_state(as_bytes({"scale_fwd": kind(tmp_path / "ran")}), "here")
    assert not (tmp_path / "ran").exists()


def test_a_state_that_is_no_pickle_is_refused():
    with pytest.raises(CheckpointError, match=r"here: is no state of 8-bit scales"):
        pickles.check_extra_state(torch.arange(24, dtype=torch.uint8), "here")


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


# How an Enum's member is pickled by Python 3.11.0 to 3.11.3, and by all others.
FORMS = {
    "by name": lambda self, _: (getattr, (type(self), self.name)),
    "by value": lambda self, _: (type(self), (self.value,)),
}


@contextlib.contextmanager
def enums_pickled(form: str, *kinds: type[Enum]):
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__reduce_ex__", FORMS[form])
        yield


def an_index(**more) -> Metadata:
    sizes = torch.Size((2, 3))
    entry = TensorStorageMetadata(
        TensorProperties(torch.bfloat16), sizes, [ChunkStorageMetadata(torch.Size((0, 0)), sizes)]
    )
    place = {MetadataIndex("a.weight", torch.Size((0, 0)), 0): _StorageInfo("__0_0.distcp", 64, 512)}
    return Metadata({"a.weight": entry}, storage_data=place, storage_meta=StorageMeta(), **more)


STORED = indexes.StoredTensor(
    "a.weight", "BF16", (2, 3), (indexes.Chunk((0, 0), (2, 3), indexes.Place("__0_0.distcp", 64, 512)),)
)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_an_index_is_read_in_whichever_form_python_pickles_enums(form, protocol, tmp_path):
    index = an_index(planner_data=list(WriteItemType))
    with enums_pickled(form, WriteItemType, _MEM_FORMAT_ENCODING):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(index, protocol))
    assert indexes.read_index(tmp_path / ".metadata").tensors == {"a.weight": STORED}
    again = indexes.as_torch(tmp_path / ".metadata")
    assert again.state_dict_metadata == index.state_dict_metadata
    assert again.storage_data == index.storage_data


@pytest.mark.parametrize("form", FORMS)
def test_a_state_of_scales_is_read_in_whichever_form_python_pickles_enums(form, transformer_engine):
    recipe = transformer_engine.DelayedScaling()
    recipe.fp8_format = transformer_engine.Format.HYBRID
    with enums_pickled(form, transformer_engine.Format):
        pickles.check_extra_state(as_bytes({"recipe": recipe}), "here")


NO_MEMBERS = [
    Call(getattr, WriteItemType, "mro"),
    Call(getattr, WriteItemType, "__class__"),
    Call(getattr, SavePlan, "__init__"),
    Call(getattr, SavePlan, "TENSOR"),
    Call(getattr, "text", "join"),
    Call(getattr, Call(WriteItemType, 1), "TENSOR"),
    Call(getattr, WriteItemType, "TENSOR", "something else"),
]


@pytest.mark.parametrize("value", NO_MEMBERS, ids=range(len(NO_MEMBERS)))
@pytest.mark.parametrize("protocol", [2, 4])
def test_getattr_takes_members_of_known_enums_alone(value, protocol, tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps([WriteItemType, SavePlan, value], protocol))
    with pytest.raises(CheckpointError, match=r"\.metadata: .*(no Enum's member|positional argument)"):
        indexes.read_index(tmp_path / ".metadata")


def test_the_builtin_getattr_is_never_given_out():
    assert pickles.read_pickle(pickle.dumps(getattr), "here") is not getattr


@pytest.mark.parametrize("name", ["mro", "__class__", "name"])
def test_a_state_of_scales_asks_formats_for_members_alone(name, transformer_engine):
    with pytest.raises(CheckpointError, match="no Enum's member"):
        pickles.check_extra_state(as_bytes(Call(getattr, transformer_engine.Format, name)), "here")


def test_the_known_enums_are_the_installed_ones():
    for kind in (WriteItemType, _MEM_FORMAT_ENCODING):
        assert pickles._ENUMS[kind.__module__, kind.__name__].split() == [member.name for member in kind]
    found = [name for module, listed in pickles.INDEX_NAMES.items() for name in enums_of(module, listed.split())]
    assert sorted(found) == ["WriteItemType", "_MEM_FORMAT_ENCODING"]


def enums_of(module: str, names: list[str]) -> list[str]:
    there = sys.modules.get(module)
    return [name for name in names if isinstance(getattr(there, name, None), type(Enum))]


# What another version wrote. Both forms are read by both; without `as_torch` one of them fails in either.
NEW_TORCH = "strides" in TensorProperties.__dataclass_fields__
STATES = {
    "torch before 2.15": (torch.bfloat16, torch.strided, False, _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT, False),
}
STATES["torch 2.15"] = (*STATES["torch before 2.15"], (3, 1))


@pytest.fixture
def written_by(tmp_path, monkeypatch):
    """`written_by("torch 2.15")`: a folder with the index as that version writes it."""

    def write(version: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(TensorProperties, "__getstate__", lambda self: STATES[version])
            (tmp_path / ".metadata").write_bytes(pickle.dumps(an_index()))
        (tmp_path / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
        return tmp_path

    return write


def tensors_in(info, folder: str) -> str:
    """What megatron-core says of the tensors in the folder's index."""
    from megatron.core import dist_checkpointing

    from megatron_sky.distributed import compat

    compat.read_index_by(indexes.as_torch)
    (tensor,) = dist_checkpointing.load_tensors_metadata(folder).values()
    return f"{tensor.key} {tensor.dtype} {tensor.global_shape}"


@pytest.mark.parametrize("version", STATES)
def test_an_index_of_either_torch_is_read(version, written_by, ranks):
    folder = written_by(version)
    assert indexes.as_torch(folder / ".metadata").state_dict_metadata == an_index().state_dict_metadata
    assert ranks(1, tensors_in, str(folder)) == ["a.weight torch.bfloat16 (2, 3)"]


@pytest.mark.slow
def test_megatron_core_alone_does_not_read_what_torch_2_15_writes(written_by):
    """Where this fails on torch 2.15 or later, `as_torch` need no longer take fields from the properties."""
    code = f"from megatron.core.dist_checkpointing import *; load_tensors_metadata({str(written_by('torch 2.15'))!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    newer, older = "TypeError: empty() got an unexpected keyword argument 'strides'", "ValueError: too many values"
    assert (newer if NEW_TORCH else older) in done.stderr


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_in_an_index_is_read_whichever_python_wrote_it(module, tmp_path):
    index = an_index()
    index.storage_meta.checkpoint_id = PurePosixPath("/a/b")
    content = pickle.dumps(index, 2).replace(f"c{PurePosixPath.__module__}\n".encode(), b"cpathlib\n")
    assert b"cpathlib\n" in content
    (tmp_path / ".metadata").write_bytes(content.replace(b"cpathlib\n", f"c{module}\n".encode()))
    assert indexes.read_index(tmp_path / ".metadata").tensors == {"a.weight": STORED}


def test_a_tensor_with_attributes_is_a_tensor(tmp_path):
    """As megatron-core's fp32 masters in Megatron-LM's files are."""
    tensor = torch.arange(6.0).reshape(2, 3)
    tensor.tensor_model_parallel = True
    torch.save({"master": tensor}, tmp_path / "file.pt")
    archive = TorchArchive(tmp_path / "file.pt")
    ref = archive.content(tolerant=True)["master"]
    assert archive.tensor(ref, "master").load().view("f4").tolist() == tensor.tolist()


class _Program:
    """Pretends to be such a tensor, and names a program where the function should stand."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return torch._tensor._rebuild_from_type_v2, (os.system, torch.Tensor, (self.command,), {})


def test_a_program_in_the_place_of_a_tensors_function_is_not_run(tmp_path):
    torch.save({"master": _Program(f"touch {tmp_path / 'ran'}")}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="was not run"):
        TorchArchive(tmp_path / "file.pt").content(tolerant=True)
    assert not (tmp_path / "ran").exists()
