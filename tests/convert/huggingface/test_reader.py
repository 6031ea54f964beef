"""Nothing in a folder's weight files goes unused in silence: it is used, said to be left out, or refused by name."""

import json
import shutil

import pytest
import torch

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import as_float32
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.convert.huggingface.conftest import (
    HIDDEN,
    LAYERS,
    LENGTH,
    LLAMA_CONFIG,
    VOCAB,
    llama_tensors,
    write_folder,
)

Q = "model.layers.0.self_attn.q_proj.weight"


def frequencies(base: float = 10000.0) -> torch.Tensor:
    return base ** (-torch.arange(0, HIDDEN // 2, 2) / (HIDDEN // 2))


def tie(tensors, dtype=torch.float32) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].to(dtype)


def test_another_head_than_the_embedding_it_is_tied_to_is_refused(llama, gpt2):
    for folder in (
        llama(tie_word_embeddings=True),
        gpt2(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1e-3})),
    ):
        with pytest.raises(CheckpointError, match=r"tie_word_embeddings = true, but lm_head\.weight is not the embedd"):
            open_source(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_of_the_embedding_is_left_out_and_said(dtype, llama):
    source = open_source(llama(lambda tensors: tie(tensors, dtype), tie_word_embeddings=True))
    assert weights.OUTPUT_LAYER not in source.weights and not source.warnings
    assert any(line.startswith("lm_head.weight: left out: the same") for line in source.left_out)


def test_a_head_that_is_missing_is_named(llama):
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: is missing"):
        open_source(llama(lambda tensors: tensors.pop("lm_head.weight")))


EXTRAS = {
    "model.layers.1.self_attn.q_proj.bias": torch.zeros(HIDDEN),
    "model.layers.2.self_attn.rotary_emb.inv_freq": frequencies(),
    "model.layers.0.attn.bias": torch.zeros(1, 1, LENGTH, LENGTH),
    "model.layers.0.self_attn.q_norm.weight": torch.ones(HIDDEN),
    "score.weight": torch.zeros(2, HIDDEN),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_tensor_that_the_model_has_no_use_for_is_refused(name, llama):
    with pytest.raises(CheckpointError, match=rf"{name}: is no tensor of this model"):
        open_source(llama(lambda tensors: tensors.update({name: EXTRAS[name]})))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_are_left_out_and_said(dtype, llama):
    names = [f"model.layers.{number}.self_attn.rotary_emb.inv_freq" for number in range(LAYERS)]
    source = open_source(llama(lambda tensors: tensors.update({name: frequencies().to(dtype) for name in names})))
    assert source.left_out == (
        "model.layers.*.self_attn.rotary_emb.inv_freq (2): left out: constants that the model makes itself",
    )
    assert not source.warnings


def test_frequencies_of_another_base_are_a_warning(llama):
    source = open_source(llama(lambda t: t.update({"model.rotary_emb.inv_freq": frequencies(500.0)})))
    assert "model.rotary_emb.inv_freq: other frequencies than config.json gives" in source.warnings[0]


def with_masks(mask: torch.Tensor):
    return lambda tensors: tensors.update({f"transformer.h.{n}.attn.bias": mask[None, None] for n in range(LAYERS)})


def test_causal_masks_are_left_out_and_others_refused(gpt2):
    causal = torch.tril(torch.ones(LENGTH, LENGTH))
    assert "attn.bias (2): left out" in open_source(gpt2(with_masks(causal))).left_out[0]
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.bias: is no causal mask"):
        open_source(gpt2(with_masks(causal - torch.tril(causal, -4))))  # a window of four tokens


def test_a_gpt2_without_its_prefix_and_with_a_head(gpt2):
    whole = open_source(gpt2())

    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    again = open_source(gpt2(bare))
    assert again.weights.keys() == whole.weights.keys() and "lm_head.weight" in again.left_out[0]


def test_files_that_are_not_read_are_named(llama):
    folder = llama()
    torch.save({"lm_head.weight": torch.zeros(VOCAB, HIDDEN)}, folder / "pytorch_model.bin")
    shutil.copy(folder / "model.safetensors", folder / "model-00003-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "README.md").write_text("")
    (folder / "onnx").mkdir()
    source = open_source(folder)
    assert source.warnings == (
        "model-00003-of-00003.safetensors, model.safetensors.index.json, pytorch_model.bin: not read: the weights are "
        "those of model.safetensors",
    )
    assert source.left_out == ("README.md, onnx/: not carried over",)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(name, llama):
    folder = llama()
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter beside the weights"):
        open_source(folder)


def halves() -> tuple[dict, dict]:
    tensors = llama_tensors()
    names = sorted(tensors)
    return {name: tensors[name] for name in names[:10]}, {name: tensors[name] for name in names[10:]}


def test_an_index_that_contradicts_its_files_is_refused(tmp_path):
    first, second = halves()
    wrong = {
        r"lm_head\.weight lies in model-00002": {"lm_head.weight": "model-00002-of-00002.safetensors"},
        r"more\.weight lies in model-00001": {"more.weight": "model-00001-of-00002.safetensors"},
        "lies outside the folder": {"lm_head.weight": "../a.safetensors"},
        r"gone\.safetensors: is missing": {"lm_head.weight": "gone.safetensors"},
        "it has no weight_map": {"lm_head.weight": 3},
    }
    for said, entries in wrong.items():
        with pytest.raises(CheckpointError, match=said):
            open_source(write_folder(tmp_path / "hf", LLAMA_CONFIG, first, second, index=entries))


def test_tensors_that_the_index_does_not_list_are_read_and_said(tmp_path):
    source = open_source(write_folder(tmp_path, LLAMA_CONFIG, *halves(), index={"lm_head.weight": None}))
    assert weights.OUTPUT_LAYER in source.weights
    assert source.warnings == (
        "lm_head.weight: model.safetensors.index.json does not list them: read, as transformers reads them",
    )


def test_a_tensor_in_two_shards_must_be_the_same(tmp_path):
    first, second = halves()
    second["lm_head.weight"] = first["lm_head.weight"]
    source = open_source(write_folder(tmp_path, LLAMA_CONFIG, first, second))
    same = "model-00001-of-00002.safetensors: left out: the same as in model-00002-of-00002.safetensors"
    assert source.left_out == (f"lm_head.weight in {same}",)
    second["lm_head.weight"] = first["lm_head.weight"] * 2
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight lies in model-00002.* and in model-00001.* and they diff"
    ):
        open_source(write_folder(tmp_path, LLAMA_CONFIG, first, second))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [('{"a": 1, "a": 2}', "'a' stands in it twice"), ("[" * 100_000, "can't be read"), ("[]", "is no JSON object")],
    ids=["twice", "deep", "list"],
)
def test_json_that_can_not_be_meant_is_refused(name, content, said, tmp_path):
    folder = write_folder(tmp_path, LLAMA_CONFIG, *halves())
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{said}"):
        open_source(folder)


def test_parts_of_one_weight_in_several_formats_are_joined_exactly(llama):
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    rows = as_float32(open_source(llama()).weights[name].load(), "F32").reshape(HIDDEN // 8, 3, 8, HIDDEN)
    source = open_source(llama(lambda tensors: tensors.update({Q: tensors[Q].bfloat16()})))
    assert source.warnings[0].startswith(
        "model.layers.*.self_attn.q_proj.weight, model.layers.*.self_attn.k_proj.weight"
    )
    mixed = source.weights[name]
    assert mixed.dtype == "F32"
    rows[:, 0] = torch.from_numpy(rows[:, 0]).bfloat16().float().numpy()
    assert (as_float32(mixed.load(), "F32").reshape(rows.shape) == rows).all()


def test_more_layers_than_there_are_tensors_are_refused_at_once(llama):
    with pytest.raises(CheckpointError, match="is said to have 10,000 layers, but holds 21 tensors"):
        open_source(llama(num_hidden_layers=10_000))


@pytest.mark.parametrize("key", ["partial_rotary_factor", "rope_parameters", "rope_scaling"])
def test_heads_that_are_rotated_in_part_are_refused(key, llama):
    value = 0.5 if key == "partial_rotary_factor" else {"rope_type": "default", "partial_rotary_factor": 0.5}
    with pytest.raises(CheckpointError, match="partial_rotary_factor"):
        open_source(llama(**{key: value}))


def test_a_config_is_read_beside_its_weights(llama):
    folder = llama(attention_dropout=0.25, eos_token_id=[1, 2])
    source = open_source(folder)
    assert source.model.attention_dropout == 0.25
    assert source.hugging_face.config == json.loads((folder / "config.json").read_text())
