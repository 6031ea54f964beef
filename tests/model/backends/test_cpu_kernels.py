"""The CPU's rotary positions and SwiGLU against megatron-core's own, forward and backward."""

import pytest


def differences(info, dtype: str) -> dict[str, float]:
    """The largest difference of results and gradients, relative to the largest number, of each kernel."""
    import torch

    from megatron_sky.distributed import device

    device.setup()
    from megatron.core.models.common.embeddings import rope_utils

    from megatron_sky.model.backends import cpu_kernels

    torch.manual_seed(1)
    kind = getattr(torch, dtype)
    cpu_kernels.install()
    cpu_kernels.install()  # as with a second model
    ours = rope_utils._apply_rotary_pos_emb_bshd
    theirs = ours.__wrapped__
    assert theirs.__module__.startswith("megatron.core")

    def apart(function, reference, x) -> float:
        results = []
        for each, of in ((function, kind), (reference, torch.float64)):
            leaf = x.to(of).detach().requires_grad_()
            out = each(leaf)
            out.backward(torch.linspace(-1, 2, out.numel()).view(out.shape).to(of))
            results.append((out.detach(), leaf.grad))
        return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))

    mixed = torch.randn(7, 2, 3, 24).to(kind)
    angles = torch.randn(7, 1, 1, 8)
    by_sample = torch.randn(7, 2, 1, 8)
    own, both = torch.cat([angles, angles], -1), torch.cat([by_sample, by_sample], -1)
    return {
        "rotation": apart(lambda x: ours(x[..., :16], own), lambda x: theirs(x[..., :16], own.double()), mixed),
        "of samples": apart(lambda x: ours(x[..., 8:], both), lambda x: theirs(x[..., 8:], both.double()), mixed),
        "a part": apart(lambda x: ours(x, own), lambda x: theirs(x, own.double()), mixed),
        "neighbours": apart(
            lambda x: ours(x[..., :16], own, rotary_interleaved=True),
            lambda x: theirs(x[..., :16], own.double(), rotary_interleaved=True),
            mixed,
        ),
        "scaled": apart(
            lambda x: ours(x[..., :16], own, mscale=1.5), lambda x: theirs(x[..., :16], own.double(), mscale=1.5), mixed
        ),
        "swiglu": apart(_fused_swiglu, _plain_swiglu, torch.randn(5, 2, 12).to(kind)),
    }


def _fused_swiglu(x):
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    return bias_swiglu_impl(x, None)


def _plain_swiglu(x):
    import torch

    gate, linear = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * linear


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-7), ("bfloat16", 2e-2)])
def test_kernels_give_what_megatron_cores_do(dtype, tolerance, ranks):
    (apart,) = ranks(1, differences, dtype)
    assert len(apart) == 6
    assert {name: error for name, error in apart.items() if error > tolerance} == {}
