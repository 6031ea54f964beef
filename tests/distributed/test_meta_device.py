"""Which of torch's kernels a GPU would take for attention: flash, the one that knows masks, or whole scores."""

import pytest
import torch

from megatron_sky.distributed import meta_device
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
