"""Checkpoints of ours as Megatron-LM's, and back: every number of weights and optimizer, bit by bit."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron_sky.checkpoint.reader.lazy import same_bits
from megatron_sky.convert.megatron.hand_back import hand_back
from megatron_sky.convert.megatron.take_over import take_over
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.conftest import VOCAB_SIZE
from tests.convert.megatron.test_training import assert_same_state
from tests.slow import slow_except

KINDS = {
    "torch_dist": {},
    "torch": {"checkpoint_format": "torch"},
    "torch, 2 x 2": {"checkpoint_format": "torch", "tp_size": 2, "pp_size": 2},
    "torch, local": {"checkpoint_format": "torch", "tp_size": 2, "transformer_impl": "local"},
}
CASES = [(kind, how) for kind in ("tp2", "gpt2", "bf16", "unsharded", "unsharded_bf16") for how in KINDS]
QUICK = [("tp2", "torch_dist"), ("gpt2", "torch, 2 x 2"), ("unsharded", "torch, local"), ("unsharded", "torch_dist")]


@pytest.mark.parametrize("case", slow_except(CASES, *QUICK), ids="-".join)
def test_there_and_back(case, native, tmp_path):
    kind, how = case
    done = hand_back(native(kind), tmp_path / "theirs", vocab_size=VOCAB_SIZE, **KINDS[how])
    assert (tmp_path / "theirs" / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert done.folder == tmp_path / "theirs" / "iter_0000002"
    back = take_over(tmp_path / "theirs", tmp_path / "run", vocab_size=VOCAB_SIZE)
    assert_same_state(native(kind), back.folder)


@pytest.mark.parametrize("how", slow_except(KINDS, "torch, local"))
def test_weights_alone(how, native, tmp_path):
    done = hand_back(native("tp2"), tmp_path / "theirs", with_optimizer=False, vocab_size=VOCAB_SIZE, **KINDS[how])
    ours, theirs = open_source(native("tp2")), open_source(done.folder, vocab_size=VOCAB_SIZE)
    assert all(same_bits(tensor.load(), theirs.weights[name].load()) for name, tensor in ours.weights.items())
    with pytest.raises(CheckpointError, match="saved without its optimizer"):
        take_over(done.folder, tmp_path / "run", vocab_size=VOCAB_SIZE)


def records_of(folder: Path, prefix: str) -> list[tuple[Path, int, int]]:
    """(file, place of the first byte, CRC-32) of the numbers of each tensor whose key begins so, read without us."""
    found = []
    for index, info in FileSystemReader(folder).read_metadata().storage_data.items():
        path = folder / info.relative_path
        content = path.read_bytes()[info.offset : info.offset + info.length]
        if index.fqn.startswith(prefix) and b"/data/0" in content:
            archive = zipfile.ZipFile(io.BytesIO(content))
            (record,) = (one for one in archive.infolist() if one.filename.endswith("/data/0"))
            header = content[record.header_offset :]
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            found.append((path, info.offset + record.header_offset + 30 + lengths, record.CRC))
    return found


@pytest.mark.parametrize("damage", ["decoder", "optimizer.state.exp_avg."])
def test_damage_is_found_by_the_crc_of_weights_and_by_the_hashes_of_the_rest(damage, native, tmp_path):
    """A CRC-32 takes a writer long, so the optimizer's tensors have none."""
    folder = shutil.copytree(native("tp2"), tmp_path / native("tp2").name)
    path, place, crc = records_of(folder, damage)[0]
    assert bool(crc) == (damage == "decoder")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC-32 differs" if crc else f"{path.name}: .*"):
        hand_back(folder, tmp_path / "theirs", with_optimizer=not crc, vocab_size=VOCAB_SIZE)
    assert not (tmp_path / "theirs" / "latest_checkpointed_iteration.txt").exists()


def test_a_rank_file_is_what_megatron_core_loads(native, tmp_path):
    options = {"checkpoint_format": "torch", "transformer_impl": "local", "vocab_size": VOCAB_SIZE}
    done = hand_back(native("unsharded"), tmp_path / "theirs", **options)
    path = done.folder / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    assert state["checkpoint_version"] == 3.0 and state["iteration"] == 2
    assert "decoder.layers.0.input_layernorm.weight" in state["model"]
    assert len(state["optimizer"]["state"]) == sum(len(g["params"]) for g in state["optimizer"]["param_groups"])
    assert state["args"].consumed_train_samples == 16 and state["args"].padded_vocab_size == 768
    assert not list(done.folder.glob("scratch*"))


def test_numbers_that_the_layout_does_not_divide_are_told_together(native, tmp_path):
    with pytest.raises(CheckpointError, match=r"(?s)query_groups = 2 is no multiple of 3.*num_layers = 4 is no multip"):
        hand_back(native("tp2"), tmp_path / "x", checkpoint_format="torch", tp_size=3, pp_size=3, vocab_size=VOCAB_SIZE)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_a_run_that_is_further_is_refused(native, tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("30")
    with pytest.raises(CheckpointError, match="names iteration 30, later than 2"):
        hand_back(native("tp2"), tmp_path, vocab_size=VOCAB_SIZE)


def test_an_interrupted_conversion_goes_on_after_its_finished_files(native, tmp_path, monkeypatch):
    from megatron_sky.convert.megatron import rank_files

    options = {"checkpoint_format": "torch", "tp_size": 2, "vocab_size": VOCAB_SIZE}
    write, written = rank_files._save, []

    def fails(output, name, state):
        if len(written) == 3:
            raise CheckpointError("the disk is full")
        written.append(name)
        write(output, name, state)

    monkeypatch.setattr(rank_files, "_save", fails)
    with pytest.raises(CheckpointError, match="the disk is full"):
        hand_back(native("tp2"), tmp_path / "theirs", **options)
    assert not (tmp_path / "theirs" / "latest_checkpointed_iteration.txt").exists()
    partial = tmp_path / "theirs" / "iter_0000002.partial"
    assert list(json.loads((partial / "conversion.json").read_text())["files"]) == written
    rest = []
    monkeypatch.setattr(
        rank_files, "_save", lambda output, name, state: (rest.append(name), write(output, name, state))
    )
    done = hand_back(native("tp2"), tmp_path / "theirs", **options)
    assert len(rest) == 1 and set(done.files) == {*written, *rest}
    assert_same_state(native("tp2"), take_over(done.folder, tmp_path / "run", vocab_size=VOCAB_SIZE).folder)
