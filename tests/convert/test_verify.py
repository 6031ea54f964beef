"""What was written, read again as its users will."""

import pytest
import torch

from megatron_sky.convert import dist_files
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.convert.huggingface.conftest import LLAMA_CONFIG, gpt2, llama, llama_tensors, write_folder  # noqa: F401


def test_the_proof_reads_the_result_as_a_user_would(llama, tmp_path, monkeypatch):  # noqa: F811
    """An index that names another format, or a config of another model, is found though every byte is as meant."""
    source = open_source(llama())
    monkeypatch.setattr(dist_files, "TORCH_NAMES", dist_files.TORCH_NAMES | {"F32": "bfloat16"})
    monkeypatch.setattr(dist_files, "_save", save_as_float32)
    with pytest.raises(
        CheckpointError, match=r"native\.partial: was written, but can't be read again: .*no BF16 tensor"
    ):
        write_native(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    monkeypatch.undo()
    build = write_hf.__globals__["hf_config"].build_config
    wrong = lambda *args, **more: build(*args, **more) | {"rms_norm_eps": 1e-5}  # noqa: E731
    monkeypatch.setattr("megatron_sky.convert.huggingface.config.build_config", wrong)
    with pytest.raises(
        CheckpointError, match=r"hf\.partial: was written, but reads.*\n  model\.norm_epsilon: 1e-06 bec"
    ):
        write_hf(source, tmp_path / "hf")


def save_as_float32(file, piece, shape, dtype):
    archive = dist_files._Archive(file, piece)
    torch.save(torch.from_numpy(piece.bits.reshape(shape).view("f4")), archive)
    return archive.begin
