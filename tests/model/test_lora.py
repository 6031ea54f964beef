"""Adapters: drawn by name, zero at first, alone trained; and packed samples that don't see each other beneath them."""

import pytest

from megatron_sky.config import dump_config
from megatron_sky.model.flops import lora_parameters

LORA = "finetune={base: none, lora: {rank: 4, alpha: 8}}"


def look(info, text: str) -> dict:
    """What of a model with adapters is trained, what they add, their halves by name, what a sample's loss pulls at."""
    import torch

    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.lora import adapters_of
    from tests.models import build
    from tests.recipes import config_of

    config = config_of(text)
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        built = build(config, context, ddp=False, lora=config.finetune.lora)
        (chunk,) = built.chunks
        halves = {}
        for placed in adapters_of(chunk):
            halves[f"{placed.key}.lora_a"] = placed.adapter.lora_a.detach().clone().numpy()
            halves[f"{placed.key}.lora_b"] = placed.adapter.lora_b.detach().clone().numpy()
        trained = {name: p.numel() for name, p in chunk.named_parameters() if p.requires_grad}
        seen = {"halves": halves, "trained": trained, "reason": built.backend_reason}
        if info.world_size > 1:
            return seen
        read = []
        chunk.embedding.register_forward_hook(lambda module, given, out: read.append(out.requires_grad_()) or read[-1])
        tokens = torch.arange(32)[None] + 5
        documents = torch.tensor([0, 20, 32], dtype=torch.int32)  # two samples, of 20 and 12 tokens
        positions = torch.cat([torch.arange(20), torch.arange(12)])[None]

        def losses():
            return chunk(tokens, positions, documents, labels=tokens + 1)

        before = losses().detach()
        with torch.no_grad():
            for placed in adapters_of(chunk):
                placed.adapter.lora_b.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        after = losses()
        after[0, 20:].sum().backward()
        pulls = read[-1].grad.abs().sum((1, 2))
        moved = (after.detach() - before).abs()
        return seen | {"moved": moved.min().item(), "first": pulls[:20].sum().item(), "second": pulls[20:].min().item()}


@pytest.fixture(scope="module")
def seen() -> dict:
    return {}


@pytest.fixture
def one(ranks, recipe, seen) -> dict:
    if not seen:
        seen.update(ranks(1, look, dump_config(recipe(LORA)))[0])
    return seen


def test_adapters_alone_are_trained(one, recipe):
    config = recipe(LORA)
    assert all(".adapter.lora_" in name for name in one["trained"])
    assert sum(one["trained"].values()) == lora_parameters(config.model, config.finetune.lora)
    assert one["reason"] == "adapters need its linears"


def test_they_add_nothing_at_first_and_something_then(one):
    assert all((half == 0).all() for name, half in one["halves"].items() if name.endswith("lora_b"))
    assert one["moved"] > 0


def test_a_sample_s_loss_pulls_at_its_own_tokens_alone(one):
    assert one["first"] == 0.0 and one["second"] > 0.0


def test_halves_are_drawn_by_name(one, ranks, recipe):
    import numpy as np

    text = dump_config(recipe(LORA, "parallel.tp_size=2", "parallel.sequence_parallel=true"))
    parts = [rank["halves"] for rank in ranks(2, look, text)]
    for name, whole in one["halves"].items():
        if not name.endswith("lora_a"):
            continue
        got = [part[name] for part in parts]
        if "linear_qkv" in name or "linear_fc1" in name:
            assert all((half == whole).all() for half in got)
        else:
            assert (np.concatenate(got, axis=1) == whole).all()
