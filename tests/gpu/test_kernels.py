"""What only a GPU computes, against the same on the CPU or written out: 8-bit products, attention with documents."""

import pytest
import torch

from megatron_sky.model import fp8
from tests.model.backends.test_torch_backend import BOUNDS, core, operands, passes


@pytest.mark.parametrize("grad_format", ["hybrid", "e4m3"])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32])
def test_8_bit_products_are_the_emulated_ones(grad_format, out):
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(256, 512, generator=generator), torch.randn(128, 512, generator=generator)
    dtype = fp8.formats(grad_format)[fp8.GRAD]
    a_scale, b_scale = fp8.scale_of(fp8.amax_of(a), dtype), fp8.scale_of(fp8.amax_of(b), fp8.E4M3)
    narrow = fp8.cast(a, a_scale, dtype), fp8.cast(b, b_scale, fp8.E4M3)
    emulated = fp8.product(narrow[0], a_scale, narrow[1], b_scale, out)
    there = [each.cuda() for each in (narrow[0], a_scale, narrow[1], b_scale)]
    real = fp8.product(*there, out).cpu()
    torch.testing.assert_close(real, emulated, rtol=2**-7 if out == torch.bfloat16 else 1e-3, atol=2e-2)


def test_casts_and_scales_are_the_cpus_bit_for_bit():
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(4)) * 3000
    for dtype in (fp8.E4M3, fp8.E5M2):
        scale = fp8.scale_of(fp8.amax_of(x), dtype)
        assert torch.equal(fp8.scale_of(fp8.amax_of(x.cuda()), dtype).cpu(), scale)
        there = fp8.cast(x.cuda(), scale.cuda(), dtype).cpu()
        assert torch.equal(there.view(torch.uint8), fp8.cast(x, scale, dtype).view(torch.uint8))


def on_the_gpu(info, groups: int) -> list[float]:
    """How far attention by documents' bounds is from attention under their mask, and chunks from the whole: bf16."""
    from megatron_sky.distributed import device

    attention = core()
    documents = torch.tensor(BOUNDS, dtype=torch.int32).cuda()
    given = [tensor.cuda().bfloat16() for tensor in operands(16, groups)]
    bounded = passes(attention, *given, documents)
    rule = device.flash_attention_takes
    device.flash_attention_takes = lambda *_: False
    try:
        masked = passes(attention, *given, documents)
    finally:
        device.flash_attention_takes = rule
    q, k, v, _ = given
    whole = attention(q, k, v, None)
    chunk = attention._attend(12, q[12:], k, v, None, 0.0)
    pairs = [*zip(bounded, masked, strict=True), (chunk, whole[12:])]
    return [float((mine.float() - theirs.float()).abs().max()) for mine, theirs in pairs]


@pytest.mark.parametrize("groups", [4, 2])
def test_attention_by_bounds_and_by_chunks_is_the_masked_one(groups, ranks):
    (differences,) = ranks(1, on_the_gpu, groups)
    assert max(differences) < 3e-2
