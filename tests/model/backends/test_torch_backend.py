"""The torch backend's parts against torch's own."""

import pytest


def norms(info, dtype: str) -> dict:
    """Our norms and torch's on the same numbers: outputs and gradients."""
    from types import SimpleNamespace

    import torch

    from megatron_sky.distributed import device

    device.setup(num_threads=1)
    from megatron_sky.model.backends import torch_backend

    config, compared = SimpleNamespace(sequence_parallel=True), {}
    for kind, own, theirs in (
        ("rmsnorm", torch_backend.RMSNorm, torch.nn.RMSNorm),
        ("layernorm", torch_backend.LayerNorm, torch.nn.LayerNorm),
    ):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(5, 2, 16, generator=generator).to(getattr(torch, dtype))
        grad = torch.randn(5, 2, 16, generator=generator).to(x.dtype)
        results = []
        for module in (own(config, 16, eps=1e-5), theirs(16, eps=1e-5)):
            with torch.no_grad():
                module.weight.copy_(torch.linspace(0.5, 1.5, 16))
            module, given = module.to(x.dtype), x.clone().requires_grad_()
            out = module(given)
            out.backward(grad)
            results.append([tensor.float().numpy() for tensor in (out.detach(), given.grad, module.weight.grad)])
        compared[kind] = results
        final = torch_backend.final_norm(kind)(config, 16)
        compared[f"{kind} marks"] = [p.sequence_parallel for p in final.parameters()]
        compared[f"{kind} names"] = sorted(final.state_dict())
        final.load_state_dict(final.state_dict() | {"_extra_state": None})
    return compared


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2), ("float64", 1e-6)])
def test_norms_are_torchs(dtype, tolerance, ranks):
    (compared,) = ranks(1, norms, dtype)
    for kind, more in (("rmsnorm", []), ("layernorm", ["bias"])):
        for own, theirs in zip(*compared[kind], strict=True):
            assert own == pytest.approx(theirs, rel=tolerance, abs=tolerance)
        assert all(compared[f"{kind} marks"]), "megatron-core sums their gradients over the tensor-parallel ranks"
        assert compared[f"{kind} names"] == ["_extra_state", *more, "weight"], "as Transformer Engine's is named"


def specs(info) -> dict:
    from megatron_sky.distributed import device

    device.setup(num_threads=1)
    from megatron_sky.distributed import compat
    from megatron_sky.model.backends import torch_backend

    facts = {}
    for name, given in {"plain": {}, "fp8": {"fp8": True}}.items():
        spec = torch_backend.layer_spec("layernorm", **given)
        attention, mlp = spec.submodules.self_attention.submodules, compat.mlp_submodules(spec)
        facts[name] = [
            part.__name__
            for part in (
                spec.submodules.input_layernorm,
                attention.core_attention,
                attention.linear_qkv,
                mlp.linear_fc2,
            )
        ]
    return facts


def test_a_layer_is_of_these_parts(ranks):
    (facts,) = ranks(1, specs)
    assert facts["plain"] == ["LayerNorm", "Attention", "ColumnParallelLinear", "RowParallelLinear"]
    assert facts["fp8"] == ["LayerNorm", "Attention", "Fp8ColumnParallelLinear", "Fp8RowParallelLinear"]
