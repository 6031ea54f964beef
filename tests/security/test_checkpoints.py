"""Checkpoints that lead elsewhere, claim what is not there or are damaged: told by every reader, and nothing is run."""

import os
import pickle
import random
import shutil
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader.diff import differences
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.security import damage, material

STEP = "run/checkpoints/step_0000003"
EXAMPLES = int(os.environ.get("MEGATRON_SKY_FUZZ", "40"))


@pytest.fixture
def step(tmp_path) -> Path:
    """A recorded checkpoint, in its run's folder."""
    return material.copy(tmp_path / "files") / STEP


def sign(folder: Path) -> Path:
    """Gives a folder the manifest of what it holds now, as who prepares one would."""
    records = store.hash_files(folder, [name for name in store.files_of(folder) if name != store.MANIFEST], "xxh3")
    material.change_json(folder / store.MANIFEST, lambda _: store.manifest_of(3, records))
    return folder


def load(info, folders: list[str]) -> list[str]:
    """What loading each checkpoint into a model ends in, as generation and evaluation load it; empty where it is well.
    Run on a rank."""
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.inference.native_model import NativeModel

    ends = []
    with open_context(ParallelConfig(distributed_optimizer=False), info) as context:
        for folder in folders:
            try:
                NativeModel(Path(folder), context)
                ends.append("")
            except CheckpointError as error:
                ends.append(f"CheckpointError: {error}")
            except Exception as error:
                ends.append(f"{type(error).__name__}: {error}")
    return ends


def train(info, recipe: str, overrides: list[str]) -> str:
    """What going on with a run ends in. Run on a rank."""
    from megatron_sky.config import load_config
    from megatron_sky.distributed.context import close_context
    from megatron_sky.trainer.run import train as run

    os.chdir(Path(recipe).parent)
    try:
        run(load_config([recipe], overrides), info)
    except CheckpointError as error:
        close_context()
        return f"CheckpointError: {error}"
    return ""


def refused(ends: list[str], message: str) -> bool:
    return all(end.startswith("CheckpointError") and message in end for end in ends)


def readers(step: Path):
    """Each of the readers but those that need a rank."""
    yield lambda: open_source(step)
    yield lambda: list(differences(step, step))


@pytest.mark.parametrize("place", ["../../../outside/__0_0.distcp", "/etc/passwd", "a/../../x", "..", "\0", ""])
def test_an_index_that_leads_elsewhere(place, step, ranks):
    index = pickle.loads((step / ".metadata").read_bytes())
    for info in index.storage_data.values():
        info.relative_path = info.relative_path.replace("__0_0.distcp", place)
    (step / ".metadata").write_bytes(pickle.dumps(index))
    sign(step)
    for read in readers(step):
        with pytest.raises(CheckpointError, match="is no file of the folder"):
            read()
    assert refused(ranks(1, load, [str(step)])[0], "is no file of the folder")
    (end,) = ranks(1, train, str(step.parents[2] / "recipe.yaml"), ["train.max_steps=4"])
    assert refused([end], "is no file of the folder")


@pytest.mark.parametrize("listed", [True, False])
def test_a_link_that_leads_out(listed, step, ranks, tmp_path):
    shutil.move(step / "__0_0.distcp", tmp_path / "outside.distcp")
    (step / "__0_0.distcp").symlink_to(tmp_path / "outside.distcp")
    sign(step)
    if not listed:
        material.change_json(step / store.MANIFEST, lambda manifest: manifest["files"].pop("__0_0.distcp") and None)
    with pytest.raises(CheckpointError, match="is a link"):
        store.verify(step) if listed else open_source(step)
    for read in readers(step):
        with pytest.raises(CheckpointError, match="is a link"):
            read()
    assert refused(ranks(1, load, [str(step)])[0], "is a link")


def test_a_megatron_folder_whose_file_is_a_link_out(step, tmp_path):
    for name in ("train_state.json", "manifest.json", "config.yaml", "tokenizer.model"):
        (step / name).unlink()
    shutil.move(step / "__0_1.distcp", tmp_path / "outside.distcp")
    (step / "__0_1.distcp").symlink_to(tmp_path / "outside.distcp")
    with pytest.raises(CheckpointError, match="is a link that leads out of the folder"):
        open_source(step)


def test_a_recipe_that_describes_more_than_is_there(step, ranks):
    """A model of a terabyte is not made before that is seen."""
    text = (step / "config.yaml").read_text()
    (step / "config.yaml").write_text(text.replace("hidden_size: 8\n", "hidden_size: 1048576\n"))
    sign(step)
    assert refused(ranks(1, load, [str(step)])[0], "describes a model of")
    with pytest.raises(CheckpointError):
        open_source(step)


@pytest.mark.parametrize("name", [".metadata", "common.pt", "__0_0.distcp"])
def test_a_damaged_file_of_tensors(name, step, ranks, tmp_path):
    """As generation and evaluation read it, whose manifest was made anew: no advice to run what is in it."""
    valid, folders = (step / name).read_bytes(), []
    for number in range(EXAMPLES):
        copy = shutil.copytree(step, tmp_path / f"{number}/{step.name}")
        (copy / name).write_bytes(damage.damage_bytes(valid, random.Random(number)))
        folders.append(str(sign(copy)))
    ends = ranks(1, load, folders)[0]
    strange = [end for end in ends if end and not end.startswith("CheckpointError")]
    assert not strange, strange
    assert not any("weights_only" in end or "eights only" in end for end in ends)
    assert sum(map(bool, ends)) > EXAMPLES // 8
