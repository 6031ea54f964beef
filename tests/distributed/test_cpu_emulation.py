"""What a CPU answers for apex's product of a weight's gradient, in each format in which it multiplies."""

import pytest
import torch

from megatron_sky.distributed.cpu_emulation import _weight_gradients


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multiplied", [torch.float32, torch.bfloat16])
def test_products_are_added_in_fp32_and_rounded_only_to_the_format_they_are_taken_in(factors, multiplied):
    generator = torch.Generator().manual_seed(1)
    inputs, gradients = (torch.randn(64, width, generator=generator).to(factors) for width in (24, 40))
    kernels = _weight_gradients(lambda dtype: multiplied if dtype == torch.bfloat16 else dtype)
    buffer = torch.full((40, 24), 1000.0)
    for _ in range(3):
        kernels.wgrad_gemm_accum_fp32(inputs, gradients, buffer)
    product = gradients.double().t() @ inputs.double()
    is_rounded = factors == multiplied == torch.bfloat16
    added = ((buffer.double() - 1000) / 3 - product).abs() / product.abs().max()
    assert added.max() < (4e-3 if is_rounded else 1e-5)
    assert (added.max() > 1e-4) == is_rounded
