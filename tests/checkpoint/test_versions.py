"""Checkpoints cross between megatron-core's versions and between the backends, weights and optimizer.

`tests/checkpoint/recorded/` holds one of each version, made by `python -m tests.checkpoint.record`. With another
interpreter in MEGATRON_SKY_OTHER_PYTHON (one that has the other version) whole runs are handed back and forth too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.monitor.metrics import read_metrics
from tests.checkpoint.record import RECORDED

VERSIONS = sorted(path.name for path in RECORDED.iterdir())
ROOT = Path(__file__).parents[2]


def loaded_digest(info, folder: str) -> dict[str, float]:
    from megatron_sky.checkpoint import state
    from tests.checkpoint.record import digest, opened, small

    entered, build = opened(small("none"))
    with entered as context:
        model, optimizer = build(context)
        state.load(Path(folder) / "checkpoint", context=context, chunks=model.chunks, optimizer=optimizer)
        return digest(model, optimizer)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recorded_checkpoint_of_each_version_is_read(version, ranks):
    want = json.loads((RECORDED / version / "digest.json").read_text())
    got = ranks(1, loaded_digest, str(RECORDED / version))[0]
    assert got.keys() == want.keys()
    assert got == pytest.approx(want, rel=1e-6, abs=1e-6)
    assert any(value != 0 for name, value in want.items() if name.endswith("exp_avg"))


def test_both_versions_are_recorded():
    assert [version.rsplit(".", 1)[0] for version in VERSIONS] == ["0.16", "0.19"]


OTHER = os.environ.get("MEGATRON_SKY_OTHER_PYTHON")


def train(python: str, recipe: Path, run_dir: Path, *overrides: str) -> list[float]:
    """The losses of that interpreter's run so far."""
    command = [python, "-m", "megatron_sky", "train", recipe, f"train.run_dir={run_dir}", *overrides]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [record.lm_loss for record in read_metrics(run_dir).train]


@pytest.mark.skipif(OTHER is None, reason="MEGATRON_SKY_OTHER_PYTHON names no interpreter with another megatron-core")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_goes_on_in_the_other_version(dtype, recipe, tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(recipe(f"precision.dtype={dtype}")))
    interpreters = {"here": sys.executable, "there": OTHER}
    whole = train(sys.executable, path, tmp_path / "whole", "train.max_steps=4")
    for first, second in (("here", "there"), ("there", "here")):
        run_dir = tmp_path / f"{first}_{second}"
        train(interpreters[first], path, run_dir, "train.max_steps=2")
        got = train(interpreters[second], path, run_dir, "train.max_steps=4")
        assert got == pytest.approx(whole, abs=1e-5 if dtype == "fp32" else 2e-3)


def te_like_extra_state(self):
    """What Transformer Engine's modules save beside their weights: a pickled description as bytes."""
    import pickle

    import torch

    state = {"scale_fwd": torch.ones(3), "extra_fp8_variables": {"fp8_max_fwd": 448.0}}
    return torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8)


def saved_and_loaded(info, folder: str, other_side: str) -> bool:
    """Saves with one backend's entries and loads with the other's; whether the weights are equal."""
    from unittest import mock

    import torch

    from megatron_sky.checkpoint import state
    from megatron_sky.checkpoint.saver import Saver
    from megatron_sky.config.schema import CheckpointConfig
    from tests.checkpoint.record import opened, small

    config = small(folder)
    config = config.model_copy(update={"checkpoint": CheckpointConfig(async_save=False, save_optimizer=False)})
    entered, build = opened(config)
    with entered as context:
        from megatron.core.tensor_parallel.layers import RowParallelLinear

        from megatron_sky.model.backends import torch_backend

        without = mock.patch.object(torch_backend, "final_norm", lambda name: torch_backend.RMSNorm)
        modules = (RowParallelLinear, torch_backend._NamedAsTe)
        # A checkpoint without the final norm's entry (what Transformer Engine misses), or with Transformer Engine's.
        if other_side == "lacks entries":
            with without:
                model, optimizer = build(context)
        else:
            model, optimizer = build(context)
        saver = Saver(
            Path(folder), config=config, context=context, chunks=model.chunks, optimizer=optimizer, fingerprint=dict
        )
        patches = [mock.patch.object(each, "get_extra_state", te_like_extra_state) for each in modules]
        if other_side == "holds Transformer Engine's":
            for patch in patches:
                patch.start()
        (ended,) = saver.start({"step": 1, "consumed_samples": 1, "consumed_tokens": 16})
        mock.patch.stopall()
        assert ended.failure is None, ended.failure
        fresh, _ = build(context)
        with torch.no_grad():
            for parameter in fresh.chunks[0].parameters():
                parameter.zero_()
        state.load(ended.folder, context=context, chunks=fresh.chunks)
        pairs = zip(model.chunks[0].parameters(), fresh.chunks[0].parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("other_side", ["lacks entries", "holds Transformer Engine's"])
def test_extra_states_of_the_other_backend_do_not_matter(other_side, ranks, tmp_path):
    assert ranks(1, saved_and_loaded, str(tmp_path), other_side) == [True]


# The keys of a checkpoint by megatron-core's Transformer Engine spec (RMSNorm, no biases), layers as a leading axis.
# Source: GPTModel of megatron-core 0.16.1 and 0.19.2 built with get_gpt_layer_with_transformer_engine_spec and
# Transformer Engine 2.20.2, `sharded_state_dict()` read; the same in both (GPTModel drops its output layer's entry).
TE_KEYS = {
    "embedding.word_embeddings.weight",
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "decoder.layers.self_attention.linear_qkv.weight",
    "decoder.layers.self_attention.linear_qkv._extra_state",
    "decoder.layers.self_attention.linear_proj.weight",
    "decoder.layers.self_attention.linear_proj._extra_state",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "decoder.layers.mlp.linear_fc1.weight",
    "decoder.layers.mlp.linear_fc1._extra_state",
    "decoder.layers.mlp.linear_fc2.weight",
    "decoder.layers.mlp.linear_fc2._extra_state",
    "decoder.final_layernorm.weight",
    "decoder.final_layernorm._extra_state",
    "output_layer.weight",
}


def sharded_keys(info, fp8: bool) -> set[str]:
    from megatron_sky.checkpoint import state
    from tests.checkpoint.record import opened, small

    config = small("none")
    if fp8:
        config = config.model_copy(update={"precision": config.precision.model_copy(update={"fp8": _delayed()})})
    entered, build = opened(config)
    with entered as context:
        model, _ = build(context)
        from megatron.core.dist_checkpointing.dict_utils import nested_values
        from megatron.core.dist_checkpointing.mapping import ShardedBase

        held, _ = state.sharded_state(model.chunks, None, context, loading=False, fp8=model.fp8)
        return {each.key for each in nested_values(held) if isinstance(each, ShardedBase)}


def _delayed():
    from megatron_sky.config.schema import Fp8Config

    return Fp8Config()


def test_the_torch_backends_keys_are_transformer_engines(ranks):
    assert ranks(1, sharded_keys, False) == [TE_KEYS]
    assert ranks(1, sharded_keys, True) == [TE_KEYS | {"fp8.amax_history"}]
