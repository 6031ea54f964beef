"""Norms and scaling over lists of tensors, as megatron-core asks for them."""

import pytest
import torch

from megatron_sky.optim.multi_tensor import l2_norm, scale

FLAG = torch.zeros(1, dtype=torch.int)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_all_numbers_together(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 4), (7,), ())]
    norm, per_tensor = l2_norm(2048, FLAG, [tensors], False)
    expected = torch.cat([tensor.flatten().double() for tensor in tensors]).norm()
    assert norm.shape == (1,) and per_tensor is None
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 1e-2)


def test_scaled_in_place_and_into_others():
    sources = [torch.arange(3.0), torch.ones(2, 2)]
    scale(2048, FLAG, [sources, sources], 0.5)
    assert [tensor.tolist() for tensor in sources] == [[0.0, 0.5, 1.0], [[0.5, 0.5], [0.5, 0.5]]]
    targets = [torch.zeros(3), torch.zeros(2, 2)]
    scale(2048, FLAG, [sources, targets], 2.0)
    assert targets[0].tolist() == [0.0, 1.0, 2.0] and sources[0].tolist() == [0.0, 0.5, 1.0]
    scale(2048, FLAG, [sources, targets], 1.0)
    assert torch.equal(targets[0], sources[0])
