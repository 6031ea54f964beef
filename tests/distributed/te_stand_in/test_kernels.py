"""Kernels give what the extension's give."""

import pytest
import torch

from tests.distributed.te_stand_in.watch import Notes, stand_in


def meta(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def gemm(extension, a, trans_a: bool, b, trans_b: bool, out=None, **rest):
    arguments = {"bias": None, "bias_type": None, "gelu": False, "gelu_in": None, "grad": False} | rest
    return extension.generic_gemm(
        a,
        trans_a,
        b,
        trans_b,
        out,
        None,
        extension.DType.kBFloat16,
        *(arguments[name] for name in ("bias", "bias_type", "gelu", "gelu_in", "grad")),
        meta(16, dtype=torch.uint8),
        16,
        False,
        False,
    )


def test_products_of_a_layer():
    """A weight `[out, in]` and tokens `[s, b, in]`: the result, the input's gradient, the weight's."""
    notes = Notes()
    extension, weight, tokens, grad = stand_in(notes), meta(48, 32), meta(8, 2, 32), meta(16, 48)
    result, *_ = gemm(extension, weight, True, tokens, False)
    assert tuple(result.shape) == (8, 2, 48)
    assert tuple(gemm(extension, weight, False, grad, False)[0].shape) == (16, 32)
    assert tuple(gemm(extension, meta(16, 32), False, grad, True)[0].shape) == (48, 32)
    shapes = [(16, 48, 32), (16, 32, 48), (48, 32, 16)]
    assert notes.products == [("mm", shape, "bfloat16", 1) for shape in shapes]


def test_products_that_do_not_fit_fail():
    extension = stand_in(Notes())
    with pytest.raises(ValueError, match="do not fit"):
        gemm(extension, meta(48, 32), True, meta(16, 31), False)
    with pytest.raises(ValueError, match="the result has the shape"):
        gemm(extension, meta(48, 32), True, meta(16, 32), False, out=meta(16, 47))


def test_a_bias_s_gradient():
    extension = stand_in(Notes())
    _, bias, *_ = gemm(extension, meta(16, 32), False, meta(16, 48), True, bias=meta(48), grad=True)
    assert tuple(bias.shape) == (48,)


def test_norms_keep_a_number_a_row():
    extension = stand_in(Notes())
    tokens, weight = meta(8, 2, 32), meta(32)
    out, mean, scale = extension.rmsnorm_fwd(tokens, weight, 1e-5, None, None, extension.DType.kBFloat16, 0, False)
    assert out.shape == tokens.shape and mean is None and (scale.shape, scale.dtype) == ((16,), torch.float32)
    assert [each.shape for each in extension.rmsnorm_bwd(out, tokens, scale, weight, 0, False)] == [(8, 2, 32), (32,)]
    _, mean, _ = extension.layernorm_fwd(tokens, weight, weight, 1e-5, None, None, 6, 0, False)
    assert mean.shape == (16,)


def test_an_operand_that_no_layer_has_is_unknown():
    with pytest.raises(NotImplementedError, match="gelu"):
        gemm(stand_in(Notes()), meta(4, 4), True, meta(4, 4), False, gelu=True)
