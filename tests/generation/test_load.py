"""A native checkpoint as transformers' model: the weights of the exported folder, without a folder."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch

from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError, ConfigError
from megatron_sky.generation.load import load_for_generation, stream_weights
from megatron_sky.inference.checkpoints import open_checkpoint
from megatron_sky.inference.hf_model import load_model
from tests.convert.conftest import hf, native

__all__ = ["hf", "native"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["tp2", "gpt2", "llama3_rope"])
def test_weights_and_logits_are_the_exported_folders(kind, native, hf):
    ours, ends = load_for_generation(open_checkpoint(native(kind)), CPU)
    theirs = load_model(hf(kind), torch.float32)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name
    tokens = torch.arange(20)[None] * 7 % 500
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=0, atol=0)
    assert ends == () and not any(parameter.is_meta for parameter in ours.parameters())


def test_a_dtype_and_what_is_none(native, hf):
    model, _ = load_for_generation(open_checkpoint(native("tp2")), CPU, "bfloat16")
    assert model.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="--dtype = 'int8': must be one of"):
        load_for_generation(open_checkpoint(hf("tp2")), CPU, "int8")


def test_a_model_that_transformers_has_no_form_of_is_refused_by_its_fields(native):
    source = open_source(native("tp2"))
    from dataclasses import replace

    odd = replace(source, model=source.model.model_copy(update={"activation": "gelu"}))
    with pytest.raises(
        CheckpointError, match=r"no architecture of transformers has this shape: .*'activation': 'gelu'"
    ):
        stream_weights(odd, CPU, torch.float32)
