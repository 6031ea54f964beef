"""Number formats side by side in one folder: a native checkpoint holds the same numbers and can be read again."""

import logging
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32, same_numbers
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.convert.huggingface.conftest import LLAMA_CONFIG, gpt2, llama, llama_tensors, write_folder  # noqa: F401


def to(dtype: torch.dtype, *parts: str):
    """Changes the tensors whose names hold one of `parts`."""

    def change(tensors):
        for name in tensors:
            if any(part in name for part in parts):
                tensors[name] = tensors[name].to(dtype)

    return change


def both(*changes):
    return lambda tensors: [change(tensors) for change in changes]


MIXED = {
    "layers of two": to(torch.bfloat16, "layers.1."),
    "layers of 16 bits": both(to(torch.bfloat16, "layers.1."), to(torch.float16, "layers.0.")),
    "norms in 32 bits": to(torch.bfloat16, "proj", "embed", "lm_head"),
    "one part of one weight": to(torch.float16, "layers.1.self_attn.k_proj"),
    "the embedding alone": to(torch.bfloat16, "embed_tokens"),
    "the head alone": to(torch.float16, "lm_head"),
    "one norm": to(torch.bfloat16, "layers.1.input_layernorm"),
}


@pytest.mark.parametrize("kind", MIXED)
def test_every_number_is_kept_and_the_result_can_be_read(kind, llama, tmp_path, ranks):  # noqa: F811
    source = open_source(llama(MIXED[kind]))
    there = open_source(write_native(source, tmp_path / "native").folder)
    for name, tensor in source.weights.items():
        assert same_numbers(tensor, there.weights[name]), name
    ranks(1, loads, str(there.folder))  # as training and generation load it
    before = load_file(source.folder / "model.safetensors")
    after = load_file(write_hf(there, tmp_path / "back").folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name].float() == after[name].float()).all() for name in before)


def loads(info, folder: str) -> None:
    from pathlib import Path

    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.inference.native_model import NativeModel

    with open_context(ParallelConfig(distributed_optimizer=False), info) as context:
        NativeModel(Path(folder), context)


def test_that_layers_were_made_equal_is_said(llama, tmp_path, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        write_native(open_source(llama(MIXED["layers of 16 bits"])), tmp_path / "native")
    assert "whose layers have several number formats" in caplog.text and "mlp.linear_fc2.weight (F32)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        write_hf(open_source(llama(MIXED["norms in 32 bits"])), tmp_path / "hf")
    assert "several number formats (BF16 " in caplog.text and "config.json names bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_a_weight_of_another_kind_of_numbers_is_refused(dtype, name, llama):  # noqa: F811
    with pytest.raises(CheckpointError, match=rf"layers\.1\.mlp\.up_proj\.weight: has dtype {name}.*quantised"):
        open_source(llama(to(dtype, "layers.1.mlp.up_proj")))


def test_more_bits_than_a_run_computes_with_are_refused_wherever_they_are(llama, tmp_path):  # noqa: F811
    source = open_source(llama(to(torch.float64, "model.norm")))
    with pytest.raises(CheckpointError, match=r"decoder\.final_layernorm\.weight is in F64"):
        write_native(source, tmp_path / "native")
    assert (tmp_path / "native").exists() is False


def test_numbers_that_are_not_finite_are_said(llama, tmp_path, caplog):  # noqa: F811
    def spoil(tensors):
        tensors["model.norm.weight"][:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])

    source = open_source(llama(spoil))
    for write in (write_native, write_hf):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "megatron_sky"):
            write(source, tmp_path / write.__name__)
        assert "norm.weight: 3 numbers are not finite" in caplog.text


def test_widening_is_exact():
    values = np.array([1.5, -0.0, 2.0**-20, 60000.0, np.inf], np.float16)
    half = LazyTensor("F16", values.shape, lambda: values.view(np.uint16), "here")
    assert (as_float32(half.widened("F32").load(), "F32") == values.astype(np.float32)).all()
    assert (half.widened("F64").load().view(np.float64) == values.astype(np.float64)).all()


def test_parts_of_ranks_that_do_not_fit_are_refused():
    def tensor(dtype, shape):
        return LazyTensor(dtype, shape, lambda: pickle.loads(b""), f"{dtype} {shape}")

    for other in (tensor("F16", (2, 3)), tensor("BF16", (2, 4)), tensor("BF16", (2,))):
        with pytest.raises(CheckpointError, match=r"which does not go beside BF16 \[2, 3\]"):
            tensor("BF16", (2, 3)).joined_with([other], 0)


def test_a_folder_of_two_shards(tmp_path):
    tensors = llama_tensors()
    names = list(tensors)
    parts = [{name: tensors[name] for name in some} for some in (names[:9], names[9:])]
    source = open_source(write_folder(tmp_path / "hf", LLAMA_CONFIG, *parts))
    assert write_native(source, tmp_path / "native").num_tensors == len(source.weights)
