"""Transformer Engine's own Python, rehearsed: every recipe of 8 bits, every layout, and the torch backend's names.

It needs `pip install "megatron-sky[te-rehearsal]"`, and skips without.
"""

import pytest

from megatron_sky.distributed.machine import Machine
from megatron_sky.errors import ConfigError, RunError
from megatron_sky.model.backends.support import machine_problems
from megatron_sky.planner.rehearsal import Rehearsal, process, rehearse
from megatron_sky.versions import installed
from tests.planner.rehearsal.jobs import rehearse_layouts, tiny
from tests.planner.rehearsal.te_facts import CAPABILITIES, MODELS, RECIPES, facts

pytestmark = [
    pytest.mark.te,
    pytest.mark.skipif(any(installed(name) is None for name in process._TE_PACKAGES), reason="needs te-rehearsal"),
]
TE, TP2_SP = "model.backend=te", ["parallel.tp_size=2", "parallel.sequence_parallel=true"]
SIZES = ["model.hidden_size=128", "model.ffn_hidden_size=256", "model.seq_length=256"]  # whole blocks of 8-bit scales
OVERLAPS = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
BASE: dict[str, tuple[int, list[str]]] = {
    "tp2 sp": (2, TP2_SP),
    "everything": (32, [*TP2_SP, *OVERLAPS, "parallel.pp_size=2", "parallel.vpp_size=2", "parallel.cp_size=2"]),
    "delayed": (2, ["precision.fp8=delayed"]),
    "tensorwise": (2, [*TP2_SP, "precision.fp8=tensorwise"]),
    "gathered in 8 bits": (2, ["precision.fp8={recipe: tensorwise, param_gather: true}"]),
    "user buffers": (4, [*TP2_SP, "parallel.tp_comm_overlap=true"]),
    "documents": (1, ["data.document_mask=true", "kernels.rope_fusion=true"]),
}
MORE: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "tp2": (2, ["parallel.tp_size=2"]),
    "cp2, validation": (4, ["parallel.cp_size=2", "parallel.pp_size=2", "validation.sets=[{name: a, path: /nowhere}]"]),
    "fp32": (2, ["precision.dtype=fp32"]),
    "fp16": (2, ["precision.dtype=fp16"]),
    "blockwise": (2, [*TP2_SP, "model.hidden_size=256", "precision.fp8=blockwise"]),
    "mxfp8": (2, [*TP2_SP, "precision.fp8=mxfp8"]),
    "gathered, delayed": (2, ["precision.fp8={recipe: delayed, param_gather: true}"]),
    "gathered, blockwise": (2, ["precision.fp8={recipe: blockwise, param_gather: true}"]),
    "gathered, mxfp8": (2, ["precision.fp8={recipe: mxfp8, param_gather: true}"]),
    "ends in 16 bits": (2, ["precision.fp8={recipe: tensorwise, first_last_layers_bf16: true}"]),
    "user buffers in 8 bits": (2, [*TP2_SP, "parallel.tp_comm_overlap=true", "precision.fp8=delayed"]),
    "tied, pp2": (2, ["model.tie_embeddings=true", "parallel.pp_size=2"]),
    "gpt": (2, [*TP2_SP, "model.normalization=layernorm", "model.activation=gelu", "model.add_bias_linear=true"]),
    "apex's gradients": (1, ["kernels.gradient_accumulation_fusion=true"]),
    "head of 20": (1, ["model.kv_channels=20"]),
    "deterministic": (1, ["kernels.deterministic=true"]),
    "no zero-1": (2, ["parallel.distributed_optimizer=false"]),
    "overlaps": (4, OVERLAPS),
    "dropout": (1, ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"]),
}


def rehearsed(layouts: dict[str, tuple[int, list[str]]]) -> dict[str, list[Rehearsal]]:
    return rehearse_layouts({name: (size, [*SIZES, TE, *overrides]) for name, (size, overrides) in layouts.items()})


@pytest.fixture(scope="module")
def base() -> dict[str, list[Rehearsal]]:
    return rehearsed(BASE)


def check(stages: list[Rehearsal]) -> None:
    for stage in stages:
        assert stage.backend == "te"
        assert sum(stage.peak_by_part.values()) == stage.peak_bytes == max(stage.peaks.values())
        assert stage.peak_phase == "forward and backward"
        assert stage.state["weights"] and stage.state["optimizer"] and stage.peak_by_part["activations"]


def test_layouts_run(base):
    for name, stages in base.items():
        check(stages)
        assert all(traffic.group != "other" for stage in stages for traffic in stage.traffic), name


def test_products_in_8_bits_are_those_of_16(base):
    """All but the output layer's, which keeps its format."""
    wide, narrow = base["tp2 sp"][0].flops, base["tensorwise"][0].flops
    assert "_scaled_mm" not in wide
    assert wide["mm"] == narrow["mm"] + narrow["_scaled_mm"] and narrow["_scaled_mm"] > narrow["mm"]
    assert wide["flash_attention"] == narrow["flash_attention"]


def test_weights_that_are_gathered_in_8_bits_take_less(base):
    gathered, wide = base["gathered in 8 bits"][0], base["delayed"][0]
    assert gathered.parameters == wide.parameters
    assert gathered.state["optimizer"] == pytest.approx(wide.state["optimizer"], rel=0.01)
    moved = {(each.collective, each.group): each.bytes for each in gathered.traffic}
    assert moved["all_gather_into_tensor", "DP"] < wide.state["weights"]


def test_user_buffers_are_memory_of_communication(base):
    plain, buffers = base["tp2 sp"][0], base["user buffers"][0]
    layer_input = 256 * 128 * 2
    assert buffers.peak_by_part["communication"] >= plain.peak_by_part["communication"] + 8 * layer_input
    assert buffers.flops == {name: flops // 2 for name, flops in plain.flops.items()}, "twice as many ranks"


@pytest.mark.slow
def test_more_layouts_run():
    for stages in rehearsed(MORE).values():
        check(stages)


@pytest.mark.slow
def test_packed_documents_make_the_cpu_wait_where_rotary_positions_are_not_fused():
    """megatron-core reads the documents' lengths back in each layer."""
    with pytest.raises(RunError, match="copies from the GPU while it computes"):
        rehearse(tiny(TE, "data.document_mask=true"), 1, 0)


def test_recorded_graphs_are_refused():
    with pytest.raises(ConfigError, match=r"kernels\.cuda_graphs = True: can't be rehearsed"):
        process.choose_backend(tiny(TE, "kernels.cuda_graphs=true"))


@pytest.mark.parametrize("model", MODELS)
def test_the_sharded_state_is_the_torch_backend_s(model):
    te, torch = (facts()["sharded"][model][backend] for backend in ("te", "torch"))

    def tensors(state: dict) -> dict:
        return {name: entry for name, entry in state.items() if "_extra_state" not in name}

    assert tensors(te) == tensors(torch) and len(tensors(te)) > 5
    assert set(torch) <= set(te), "what else Transformer Engine has are extra states, which loading passes over"


def test_names_of_our_own_are_there_in_the_installed_version():
    asked = facts()["names"]
    for name in (
        "megatron.core.extensions.transformer_engine.TENorm",
        "transformer_engine.pytorch.module.base.initialize_ub",
        "transformer_engine.pytorch.module.base.destroy_ub",
        "transformer_engine.pytorch.optimizers",
    ):
        assert name in asked
    assert facts()["lacking"] == []


@pytest.mark.parametrize("fp8", [None, *RECIPES])
def test_our_call_for_user_buffers_fits_the_installed_version(fp8):
    """A wrong keyword would have failed already."""
    assert set(facts()["buffers"][fp8]) == {"shape", "tp_size", "bootstrap_backend", "quantization_modes"}


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_recipes_are_refused_as_transformer_engine_refuses_them(capability):
    """By our own message before a run, and by no other recipe."""
    te = installed("transformer-engine")
    machine = Machine("a GPU", capability, torch="2.13", cuda_version="13.0", te=te, te_cuda=13, apex=True)
    refused = set()
    for recipe in RECIPES:
        config = tiny(TE, f"precision.fp8={recipe}")
        problems = machine_problems(machine, "te", precision=config.precision, kernels=config.kernels)
        assert all("needs a" in problem.rule and problem.fix for problem in problems)
        refused |= {recipe} if problems else set()
    assert refused == facts()["refused"][capability]
