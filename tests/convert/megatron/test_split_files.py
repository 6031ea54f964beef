"""Megatron-LM's own checkpoints: torch_dist folders through megatron-core's public API, and the older split files."""

import argparse

import numpy as np
import pytest
import torch

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import same_bits
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import MEGATRON_DIST, MEGATRON_SPLIT, open_source
from megatron_sky.errors import CheckpointError
from tests.conftest import SEQ_LENGTH, VOCAB_SIZE
from tests.convert import workers
from tests.convert.conftest import MODEL
from tests.convert.megatron.runs import kind_settings
from tests.convert.test_native import assert_same_weights
from tests.slow import slow_except

SETTINGS = {
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 8,
    "max_position_embeddings": SEQ_LENGTH,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "normalization": "RMSNorm",
    "norm_epsilon": 1e-6,
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "padded_vocab_size": 768,
    "tensor_model_parallel_size": 2,
}


@pytest.mark.parametrize("spelling", slow_except(["fused", "te", "separate", "numbered"], "te"))
def test_torch_dist(spelling, ranks, corpus, tmp_path):
    folder = tmp_path / "save" / "iter_0000007"
    ranks(2, workers.save_as_megatron, str(folder), SETTINGS, MODEL, spelling)
    (tmp_path / "save" / "latest_checkpointed_iteration.txt").write_text("7")
    source = open_source(tmp_path / "save", tokenizer=corpus / "tokenizer.model")
    assert source.kind == MEGATRON_DIST and source.model.query_groups == 2
    back = open_source(write_native(source, tmp_path / "native").folder)
    assert_same_weights(source, back)
    ours = ranks(1, workers.logits, str(back.folder))[0]
    assert np.abs(ours - hf_logits(write_hf(source, tmp_path / "hf").folder)).max() <= 1e-5


def hf_logits(folder) -> np.ndarray:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return model(torch.tensor([workers.TOKENS])).logits[0].numpy()


def test_the_vocabulary_is_never_guessed(ranks, corpus, tmp_path):
    folder = tmp_path / "iter_0000007"
    ranks(2, workers.save_as_megatron, str(folder), SETTINGS, MODEL, "fused")
    with pytest.raises(CheckpointError, match=r"768 rows are tokens(?s:.*)--vocab-size"):
        open_source(folder)
    with pytest.raises(CheckpointError, match=r"--vocab-size 512 contradicts.*700"):
        open_source(folder, tokenizer=corpus / "tokenizer.model", vocab_size=512)
    with pytest.raises(CheckpointError, match="1,000 tokens, but the embedding only 768 rows"):
        open_source(folder, vocab_size=1000)
    assert open_source(folder, vocab_size=VOCAB_SIZE).model.padded_vocab_size == 768


# The older files: (tensor-parallel size, pipeline stages, chunks a stage, megatron-core's flat names or the nested)
SPLITS = [
    (1, 1, 1, "flat"),
    (2, 1, 1, "flat"),
    (2, 2, 1, "flat"),
    (1, 2, 2, "flat"),
    (2, 2, 1, "nested"),
    (2, 1, 1, "nested"),
]


@pytest.mark.parametrize(("tp", "pp", "vpp", "spelling"), SPLITS)
@pytest.mark.parametrize("kind", ["one", "gpt2"])
def test_split_files(kind, tp, pp, vpp, spelling, native, corpus, tmp_path):
    whole = open_source(native(kind))
    write_split(whole, tmp_path / "iter_0000007", tp=tp, pp=pp, vpp=vpp, nested=spelling == "nested")
    source = open_source(tmp_path / "iter_0000007", tokenizer=corpus / "tokenizer.model")
    assert source.kind == MEGATRON_SPLIT
    assert_same_weights(whole, open_source(write_native(source, tmp_path / "native").folder))


def write_split(source, folder, *, tp: int, pp: int, vpp: int, nested: bool) -> None:
    """Cuts the weights as Megatron-LM's ranks hold them, padding the vocabulary as it does."""
    model = source.model
    tensors = {name: torch.from_numpy(tensor.load()).view(torch.float32) for name, tensor in source.weights.items()}
    for name in set(weights.VOCABULARY_ROWS) & tensors.keys():
        padding = torch.full((768 - VOCAB_SIZE, model.hidden_size), 9.0)
        tensors[name] = torch.cat([tensors[name], padding])
    per_chunk = model.num_layers // (pp * vpp)
    for stage in range(pp):
        for rank in range(tp):
            chunks = []
            for chunk in range(vpp):
                first = (chunk * pp + stage) * per_chunk
                part = chunk_of(tensors, model, first, per_chunk, tp, rank)
                chunks.append(as_nested(part) if nested else part)
            path = folder / (f"mp_rank_{rank:02d}" if pp == 1 else f"mp_rank_{rank:02d}_{stage:03d}")
            path.mkdir(parents=True)
            models = {"model": chunks[0]} if vpp == 1 else {f"model{i}": chunk for i, chunk in enumerate(chunks)}
            settings = argparse.Namespace(**SETTINGS | kind_settings(model), callback=workers.Unknown())
            content = {"args": settings, "checkpoint_version": 3.0, "iteration": 7, "optimizer": {"x": torch.ones(3)}}
            torch.save(content | models, path / "model_optim_rng.pt")


def chunk_of(tensors: dict, model, first: int, count: int, tp: int, rank: int) -> dict:
    part = {}
    for name, tensor in tensors.items():
        if name.startswith(weights.LAYERS):
            number, _, inner = name.removeprefix(weights.LAYERS).partition(".")
            if first <= int(number) < first + count:
                part[f"{weights.LAYERS}{int(number) - first}.{inner}"] = cut(inner, tensor, model, tp, rank)
        elif name.startswith("embedding."):
            if first == 0:
                part[name] = tensor if "position" in name else tensor.chunk(tp)[rank]
        elif first + count == model.num_layers:
            part[name] = tensor.chunk(tp)[rank] if name == weights.OUTPUT_LAYER else tensor
    if model.tie_embeddings and first + count == model.num_layers and first > 0:
        part[weights.OUTPUT_LAYER] = tensors[weights.WORD_EMBEDDING].chunk(tp)[rank]  # the last stage's copy
    return {name: tensor.clone() for name, tensor in part.items()}


def cut(inner: str, tensor: torch.Tensor, model, tp: int, rank: int) -> torch.Tensor:
    if "layer_norm" in inner or inner in ("self_attention.linear_proj.bias", "mlp.linear_fc2.bias"):
        return tensor
    if inner in ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight"):
        return tensor.chunk(tp, dim=1)[rank]
    if "linear_fc1" in inner and model.activation == "swiglu":
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(tp)[rank], up.chunk(tp)[rank]])
    return tensor.chunk(tp)[rank]


def as_nested(flat: dict) -> dict:
    """The names of Megatron-LM before megatron-core."""
    spelled = {
        "self_attention.linear_qkv.layer_norm_": "input_norm.",
        "self_attention.linear_qkv.": "self_attention.query_key_value.",
        "self_attention.linear_proj.": "self_attention.dense.",
        "mlp.linear_fc1.layer_norm_": "post_attention_norm.",
        "mlp.linear_fc1.": "mlp.dense_h_to_4h.",
        "mlp.linear_fc2.": "mlp.dense_4h_to_h.",
        "decoder.layers.": "layers.",
        "decoder.final_layernorm.": "final_norm.",
    }
    model = {"encoder": {}}
    for name, tensor in flat.items():
        if name.startswith("embedding."):
            table, _, leaf = name.removeprefix("embedding.").partition(".")
            model.setdefault("embedding", {}).setdefault(table, {})[leaf] = tensor
        elif name.startswith("output_layer."):
            model.setdefault("output_layer", {})["weight"] = tensor
        else:
            for new, old in spelled.items():
                name = name.replace(new, old)
            model["encoder"][name] = tensor
    return {"language_model": model}


def test_a_missing_rank_is_named(native, corpus, tmp_path):
    folder = tmp_path / "iter_0000007"
    write_split(open_source(native("one")), folder, tp=2, pp=2, vpp=1, nested=False)
    (folder / "mp_rank_01_001" / "model_optim_rng.pt").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"mp_rank_01_001/model_optim_rng.pt: is missing"):
        open_source(folder, tokenizer=corpus / "tokenizer.model")
    (folder / "mp_rank_01_001").rmdir()
    with pytest.raises(CheckpointError, match=r"none for \(tensor rank, stage\) \(1, 1\)"):
        open_source(folder, tokenizer=corpus / "tokenizer.model")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"num_experts": 8}, "num_experts"),
        ({"rotary_percent": 0.5}, "rotary_percent"),
        ({"add_qkv_bias": True}, "add_qkv_bias"),
        ({"num_layers": 6}, "layers.4.*is missing"),
        ({"ffn_hidden_size": 64}, "has shape"),
    ],
)
def test_another_kind_of_model_is_refused(changed, part, native, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, next(iter(changed)), next(iter(changed.values())))
    write_split(open_source(native("one")), tmp_path / "iter_0000007", tp=1, pp=1, vpp=1, nested=False)
    with pytest.raises(CheckpointError, match=f"(?s){part}"):
        open_source(tmp_path / "iter_0000007", tokenizer=corpus / "tokenizer.model")


def test_a_model_is_described_by_a_recipe_where_the_files_do_not(native, corpus, tmp_path):
    folder = tmp_path / "iter_0000007"
    write_split(open_source(native("one")), folder, tp=1, pp=1, vpp=1, nested=False)
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    model = torch.load(path, weights_only=False)["model"]
    torch.save({"model": model, "checkpoint_version": 3.0}, path)
    with pytest.raises(CheckpointError, match="--recipe"):
        open_source(folder, tokenizer=corpus / "tokenizer.model")
    recipe = native("one") / "config.yaml"
    source = open_source(folder, tokenizer=corpus / "tokenizer.model", recipe=recipe)
    assert same_bits(
        source.weights[weights.OUTPUT_LAYER].load(), open_source(native("one")).weights[weights.OUTPUT_LAYER].load()
    )


def change_rank(folder, rank: str, change) -> None:
    """Has `change(model)` change what a rank's file holds of the model."""
    path = folder / rank / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    change(content["model"])
    torch.save(content, path)


def test_a_tied_models_copy_of_the_embedding_must_be_one(native, corpus, tmp_path):
    folder, tokenizer = tmp_path / "iter_0000007", corpus / "tokenizer.model"
    write_split(open_source(native("gpt2")), folder, tp=1, pp=2, vpp=1, nested=False)
    assert weights.OUTPUT_LAYER not in open_source(folder, tokenizer=tokenizer).weights
    change_rank(folder, "mp_rank_00_001", lambda model: model[weights.OUTPUT_LAYER].mul_(2))
    with pytest.raises(CheckpointError, match=r"output_layer\.weight: is another tensor than the embedding"):
        open_source(folder, tokenizer=tokenizer)


def test_norms_that_differ_between_ranks_are_said(native, corpus, tmp_path):
    folder = tmp_path / "iter_0000007"
    write_split(open_source(native("one")), folder, tp=2, pp=1, vpp=1, nested=False)
    change_rank(folder, "mp_rank_01", lambda model: model["decoder.final_layernorm.weight"].add_(1))
    source = open_source(folder, tokenizer=corpus / "tokenizer.model")
    assert source.warnings == (
        "decoder.final_layernorm.weight: differ between tensor-parallel ranks (in all 1 tensors): rank 0's taken",
    )


def with_a_second_spelling(model) -> None:
    name = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
    model["decoder.layers.0.input_layernorm.weight"] = model[name] * 2


def with_a_table_in_itself(model) -> None:
    model["again"] = model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_a_second_spelling, r"is decoder\.layers\.0\..*layer_norm_weight, and so is"),
        (with_a_table_in_itself, "tables within tables without an end"),
    ],
)
def test_a_model_that_can_not_be_meant_is_refused(change, said, native, corpus, tmp_path):
    folder = tmp_path / "iter_0000007"
    write_split(open_source(native("one")), folder, tp=1, pp=1, vpp=1, nested=False)
    change_rank(folder, "mp_rank_00", change)
    with pytest.raises(CheckpointError, match=said):
        open_source(folder, tokenizer=corpus / "tokenizer.model")


def test_a_rank_of_a_size_that_no_machine_has_is_refused_at_once(tmp_path):
    for name in ("mp_rank_00", "mp_rank_99999999"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"files of 100,000,000 tensor-parallel ranks.*\(1, 0\), \(2, 0\)"):
        open_source(tmp_path)


@pytest.mark.parametrize("content", ["../../elsewhere", "-3", "", "7\n8"])
def test_a_latest_iteration_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(content)
    with pytest.raises(CheckpointError, match="neither an iteration's number nor `release`"):
        open_source(tmp_path)
