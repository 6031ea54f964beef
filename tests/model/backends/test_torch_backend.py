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


def core(cp_group=None):
    """The backend's attention as a layer builds it."""
    from types import SimpleNamespace

    from megatron_sky.distributed import device

    device.setup(num_threads=1)
    from megatron_sky.model.backends.torch_backend import Attention

    size = 1 if cp_group is None else cp_group.size()
    config = SimpleNamespace(attention_dropout=0.0, context_parallel_size=size)
    return Attention(config, 1, None, "self", pg_collection=SimpleNamespace(cp=cp_group))


def operands(length: int, groups: int):
    """Queries, keys, values and the result's gradient: two rows, four heads of 8."""
    import torch

    generator = torch.Generator().manual_seed(5)
    shapes = [(length, 2, heads, 8) for heads in (4, groups, groups)] + [(length, 2, 32)]
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def passes(attention, q, k, v, grad, documents) -> list:
    """The result and the gradients of queries, keys and values."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    out = attention(q, k, v, documents)
    out.backward(grad)
    return [tensor.detach() for tensor in (out, q.grad, k.grad, v.grad)]


BOUNDS = [0, 5, 6, 16, 24, 32]
"""Of the documents of two rows of 16."""


def in_chunks(info, groups: int, bounds: list[int] | None) -> list[float]:
    """How far a context-parallel rank's two chunks are from the whole sequence's attention."""
    import torch

    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context

    whole = operands(16, groups)
    documents = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    want = passes(core(), *whole, documents)
    half, last = 16 // (2 * info.world_size), 2 * info.world_size - 1
    own = [*range(info.rank * half, (info.rank + 1) * half)]
    own += range((last - info.rank) * half, (last - info.rank + 1) * half)
    with open_context(ParallelConfig(cp_size=info.world_size), info) as context:
        got = passes(core(context.cp_group), *(tensor[own] for tensor in whole), documents)
    return [float((mine - theirs[own]).abs().max()) for mine, theirs in zip(got, want, strict=True)]


@pytest.mark.parametrize(("groups", "bounds"), [(4, None), (2, None), (2, BOUNDS)])
def test_a_context_parallel_ranks_chunks_are_attended_as_in_the_whole_sequence(groups, bounds, ranks):
    for differences in ranks(2, in_chunks, groups, bounds):
        assert max(differences) < 1e-5


class WrittenOut:
    """Flash attention over sequences of many lengths, as its operators are defined, for a CPU."""

    def __init__(self):
        self.calls = []

    def probabilities(self, query, key, scale):
        import torch

        groups = query.shape[1] // key.shape[1]
        scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(groups, 1)) * scale
        behind = torch.ones_like(scores[0], dtype=torch.bool).tril(key.shape[0] - query.shape[0])
        return scores.masked_fill(~behind, float("-inf")).softmax(-1)

    def forward(self, query, key, value, q_bounds, k_bounds, max_q, max_k, dropout, causal, debug, *, scale=None, **_):
        import torch

        assert causal and not debug and dropout == 0 and query.dim() == 3 and query.stride(-1) == 1
        assert q_bounds.dtype == torch.int32 and max(q_bounds.diff().max(), k_bounds.diff().max()) <= max_q == max_k
        self.calls.append((tuple(query.shape), tuple(key.shape), q_bounds.tolist()))
        out = torch.empty_like(query)
        for begin, end in zip(q_bounds[:-1].tolist(), q_bounds[1:].tolist(), strict=True):
            part = self.probabilities(query[begin:end], key[begin:end], scale or query.shape[-1] ** -0.5)
            wide = value[begin:end].repeat_interleave(query.shape[1] // key.shape[1], 1)
            out[begin:end] = torch.einsum("hqk,khd->qhd", part, wide)
        state = torch.zeros(2, dtype=torch.uint64)
        return out, query.new_zeros(query.shape[1], query.shape[0]), state, state[0], query.new_empty(0)

    def backward(self, grad, query, key, value, out, lse, q_bounds, k_bounds, *rest, scale=None, **_):
        import torch

        scale, times = scale or query.shape[-1] ** -0.5, query.shape[1] // key.shape[1]
        results = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for begin, end in zip(q_bounds[:-1].tolist(), q_bounds[1:].tolist(), strict=True):
            q, k, v, o, g = (tensor[begin:end] for tensor in (query, key, value, out, grad))
            part = self.probabilities(q, k, scale)
            of_scores = torch.einsum("qhd,khd->hqk", g, v.repeat_interleave(times, 1))
            of_scores = part * (of_scores - (g * o).sum(-1).T[..., None]) * scale
            of_heads = torch.einsum("hqk,qhd->khd", of_scores, q), torch.einsum("hqk,qhd->khd", part, g)
            results[0][begin:end] = torch.einsum("hqk,khd->qhd", of_scores, k.repeat_interleave(times, 1))
            for result, wide in zip(results[1:], of_heads, strict=True):
                result[begin:end] = wide.unflatten(1, (-1, times)).sum(2)
        return tuple(results)


def by_bounds(info, groups: int) -> tuple[list[float], list]:
    """How far attention by documents' bounds is from attention under their mask, and what its kernel was given."""
    import torch

    attention, documents = core(), torch.tensor(BOUNDS, dtype=torch.int32)
    masked = passes(attention, *operands(16, groups), documents)
    from megatron_sky.distributed import device

    kernel, library, rule = WrittenOut(), torch.library.Library("aten", "IMPL"), device.flash_attention_takes
    library.impl("_flash_attention_forward", kernel.forward, "CPU")
    library.impl("_flash_attention_backward", kernel.backward, "CPU")
    device.flash_attention_takes = lambda *_: True
    try:
        bounded = passes(attention, *operands(16, groups), documents)
    finally:
        device.flash_attention_takes = rule
        library._destroy()
    return [float((mine - theirs).abs().max()) for mine, theirs in zip(bounded, masked, strict=True)], kernel.calls


@pytest.mark.parametrize("groups", [4, 2])
def test_bounds_of_documents_are_what_their_mask_is(groups, ranks):
    """Only a GPU has the kernel. What it is given, and what autograd makes of it, is held to its definition."""
    ((differences, calls),) = ranks(1, by_bounds, groups)
    assert max(differences) < 1e-5
    assert calls == [((32, 4, 8), (32, groups, 8), BOUNDS)]
