"""The recipe's GPU options in megatron-core's words, built by the megatron-core that is installed, without a GPU.

What needs Transformer Engine to be built at all is checked in its source: the names that we call are there.
"""

import ast
import dataclasses
import inspect

import pytest


@pytest.fixture(scope="module")
def megatron():
    from megatron_sky.distributed import device

    device.setup()
    import megatron.core

    return megatron.core


def built(config, backend: str = "te", on_gpu: bool = True) -> dict:
    """Every field of megatron-core's three configs that this recipe leads to."""
    from megatron_sky.model import mcore_config

    sections = {"parallel": config.parallel, "precision": config.precision}
    transformer = mcore_config.transformer_config(
        config.model, **sections, train=config.train, kernels=config.kernels, on_gpu=on_gpu, backend=backend
    )
    ddp = mcore_config.ddp_config(config.parallel, config.precision)
    optimizer = mcore_config.optimizer_config(config.optimizer, lr=1e-3, min_lr=0.0, **sections)
    return {
        f"{name}.{field.name}": getattr(each, field.name)
        for name, each in {"transformer": transformer, "ddp": ddp, "optimizer": optimizer}.items()
        for field in dataclasses.fields(each)
    }


def differences(recipe, *overrides: str, backend: str = "te") -> dict:
    plain, changed = (built(recipe("precision.dtype=bf16", *each), backend) for each in ((), overrides))
    return {name: value for name, value in changed.items() if repr(value) != repr(plain[name])}


@pytest.mark.parametrize("fp8_recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_8_bits_for_transformer_engine(fp8_recipe, recipe, megatron):
    settings = (
        f"precision.fp8={{recipe: {fp8_recipe}, format: e4m3, amax_history_len: 9, amax_compute_algo: most_recent}}"
    )
    found = differences(recipe, settings)
    assert found["transformer.fp8"] == "e4m3"
    assert found.get("transformer.fp8_recipe", "delayed") == fp8_recipe
    assert found["transformer.fp8_amax_history_len"] == 9
    assert not [name for name in found if not name.startswith("transformer.fp8")]


def test_8_bit_weights_are_gathered_by_ddp_and_optimizer(recipe, megatron):
    found = differences(recipe, "precision.fp8={recipe: mxfp8, param_gather: true}")
    assert found["transformer.fp8_param"] and found["ddp.fp8_param_gather"]
    assert found["optimizer.fp8_recipe"] == "mxfp8"
    assert found["ddp.reuse_grad_buf_for_mxfp8_param_ag"] and found["optimizer.reuse_grad_buf_for_mxfp8_param_ag"]


def test_the_torch_backends_8_bits_are_none_of_megatron_cores_business(recipe, megatron):
    assert differences(recipe, "precision.fp8={recipe: delayed}", backend="torch") == {}


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["kernels.deterministic=true"], {"deterministic_mode": True}),
        (["kernels.cross_entropy_fusion=false"], {"cross_entropy_loss_fusion": False}),
        (["kernels.gradient_accumulation_fusion=true"], {"gradient_accumulation_fusion": True}),
        (["kernels.cuda_graphs=true"], {"cuda_graph_impl": "local"}),
        (
            ["parallel={tp_size: 2, sequence_parallel: true, tp_comm_overlap: true}"],
            {"tp_comm_overlap": True, "sequence_parallel": True, "tensor_model_parallel_size": 2},
        ),
    ],
)
def test_options_have_one_place_each(overrides, wanted, recipe, megatron):
    found = {name.removeprefix("transformer."): value for name, value in differences(recipe, *overrides).items()}
    assert wanted.items() <= found.items()
    assert found.keys() - wanted.keys() <= {"expert_tensor_parallel_size", "inference_cuda_graph_scope"}


def test_sends_overlap_only_between_chunks(recipe, megatron):
    pipelined = ["parallel.pp_size=2", "parallel.vpp_size=2"]
    fields = ("transformer.overlap_p2p_comm", "transformer.batch_p2p_comm")
    assert [built(recipe(*pipelined))[name] for name in fields] == [True, False]
    assert [built(recipe(*pipelined, "parallel.overlap_p2p=false"))[name] for name in fields] == [False, True]
    assert [built(recipe("parallel.pp_size=2"))[name] for name in fields] == [False, True]


def test_fused_rotary_positions_want_transformer_engine(recipe, megatron):
    """megatron-core refuses them without it; `machine` and `backend_problems` do so before."""
    try:
        import transformer_engine  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="apply_rope_fusion"):
            built(recipe("kernels.rope_fusion=true"))
    else:
        assert built(recipe("kernels.rope_fusion=true"))["transformer.apply_rope_fusion"]


def test_a_cpu_runs_no_fused_kernels(recipe, megatron):
    found = built(recipe(), on_gpu=False, backend="torch")
    fused = ("bias_dropout_fusion", "cross_entropy_loss_fusion", "apply_rope_fusion")
    assert not any(found[f"transformer.{name}"] for name in fused)
    assert found["transformer.gradient_accumulation_fusion"] and found["transformer.use_cpu_initialization"]


def names_in(module) -> set[str]:
    """Every class and function that a module's source defines, at whatever depth."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    return {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)} | {
        target.id
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def test_what_the_te_backend_calls_is_there(megatron):
    from megatron.core.extensions import transformer_engine
    from megatron.core.models.gpt import GPTModel, gpt_layer_specs
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.tensor_parallel import random

    assert {"TENorm", "TEDotProductAttention", "TELayerNormColumnParallelLinear"} <= names_in(transformer_engine)
    assert "get_gpt_layer_with_transformer_engine_spec" in names_in(gpt_layer_specs)
    assert "packed_seq_params" in inspect.signature(GPTModel.forward).parameters
    assert {"qkv_format", "cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv"} <= {
        field.name for field in dataclasses.fields(PackedSeqParams)
    }
    assert "use_cudagraphable_rng" in inspect.signature(random.model_parallel_cuda_manual_seed).parameters


def test_documents_become_bounds(megatron):
    import torch

    from megatron_sky.model.backends.te import packed_documents

    packed = packed_documents(torch.tensor([0, 3, 4, 10], dtype=torch.int32), torch.device("cpu"))
    assert packed.qkv_format == "thd" and packed.max_seqlen_q == packed.max_seqlen_kv == 6
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 3, 4, 10]
