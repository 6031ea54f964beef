"""Which of torch's kernels a GPU would take for attention: flash, the one that knows masks, or whole scores."""

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from torch.nn.attention import bias

from megatron_sky.distributed import cpu_emulation, meta_device
from megatron_sky.planner.rehearsal.ledger import Ledger


@pytest.mark.parametrize(
    ("dtype", "heads", "groups", "size", "masked", "kernel"),
    [
        (torch.bfloat16, 4, 4, 64, False, "flash_attention"),
        (torch.float16, 4, 2, 64, False, "flash_attention"),
        (torch.bfloat16, 4, 4, 20, False, "flash_attention"),
        (torch.bfloat16, 4, 4, 64, True, "efficient_attention"),
        (torch.float32, 4, 4, 64, False, "efficient_attention"),
        (torch.float32, 4, 4, 20, False, "efficient_attention"),
        (torch.bfloat16, 4, 4, 20, True, "bmm"),
        (torch.bfloat16, 4, 4, 512, False, "efficient_attention"),
        (torch.float32, 4, 2, 64, False, "bmm"),
        (torch.bfloat16, 4, 2, 64, True, "bmm"),
    ],
)
def test_the_kernel_that_a_gpu_takes(dtype, heads, groups, size, masked, kernel):
    q = torch.empty(2, heads, 24, size, dtype=dtype, device="meta", requires_grad=True)
    k = torch.empty(2, groups, 24, size, dtype=dtype, device="meta", requires_grad=True)
    mask = torch.empty(2, 1, 24, 24, dtype=torch.bool, device="meta") if masked else None
    with Ledger() as ledger:
        out = meta_device._attention(q, k, k, mask, is_causal=not masked, enable_gqa=heads != groups)
        assert out.shape == q.shape
        out.sum().backward()
    assert kernel in {name for _, (name, *_) in ledger.operations}
    assert k.grad.shape == k.shape


@pytest.mark.parametrize(
    ("dtype", "groups", "kernel"),
    [
        (torch.bfloat16, 4, "flash_attention"),
        (torch.bfloat16, 2, "flash_attention"),
        (torch.float32, 4, "efficient_attention"),
        (torch.float32, 2, "bmm"),
    ],
)
def test_the_lower_right_corner_is_a_name_to_a_gpu(dtype, groups, kernel, monkeypatch):
    """torch's own way to the kernels, with its questions about the GPU answered. No mask is made but the last one's."""
    monkeypatch.setattr(bias, "can_use_flash_attention", meta_device._takes_flash)
    monkeypatch.setattr(bias, "can_use_efficient_attention", meta_device._takes_efficient)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", meta_device._attention)
    monkeypatch.setattr(bias.CausalBias, "__new__", meta_device._new_bias)
    q = torch.empty(2, 4, 24, 64, dtype=dtype, device="meta", requires_grad=True)
    k = torch.empty(2, groups, 72, 64, dtype=dtype, device="meta", requires_grad=True)
    with Ledger() as ledger:
        mask = bias.causal_lower_right(24, 72)
        out = meta_device._attention(q, k, k, mask, enable_gqa=groups != 4)
        out.sum().backward()
    assert kernel in {name for _, (name, *_) in ledger.operations}
    assert out.shape == q.shape and k.grad.shape == k.shape


def calls_of(module: str) -> list[ast.Call]:
    """megatron-core's calls `module.function(...)`."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None and spec.origin is not None
    calls = []
    for path in Path(spec.origin).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if f"{module}." in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(f"{module}."):
                calls.append(node)
    return calls


@pytest.mark.parametrize("kernels", [cpu_emulation.WeightGradients, meta_device._weight_gradients(Ledger())])
def test_what_stands_in_for_apex_has_what_megatron_core_calls(kernels):
    """apex itself is not held to it: it can't be built without CUDA."""
    calls = calls_of("fused_weight_gradient_mlp_cuda")
    assert len(calls) > 1
    for call in calls:
        function = getattr(kernels, ast.unparse(call.func).rpartition(".")[2])
        inspect.signature(function).bind(*call.args, **{word.arg: word.value for word in call.keywords})
