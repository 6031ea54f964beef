"""A parameter's optimizer state is made whole by one rank, under the names of megatron-core's form, and given back."""

import pytest

from megatron_sky.config import dump_config
from tests.recipes import config_of


def collect_and_give_back(info, config_text: str) -> dict:
    """On each rank: how many parameters it owns and its group holds, and which are not whole, misnamed or lost."""

    import torch

    from megatron_sky.checkpoint import optimizer_shards as shards
    from megatron_sky.checkpoint.state import _bare
    from megatron_sky.distributed import device
    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model
    from megatron_sky.optim.build import build_optimizer

    config = config_of(config_text)
    device.setup()
    sections = {"parallel": config.parallel, "precision": config.precision}
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        model = build_model(config.model, **sections, train=config.train, context=context)
        outer = build_optimizer(config.optimizer, schedule=config.schedule, **sections, chunks=model.chunks)
        inner = shards.distributed_optimizer(outer)
        fresh = list(shards._collect(inner).values())  # before any step
        assert not any(tensors["exp_avg"].any() or tensors["exp_avg_sq"].any() for tensors in fresh)
        inner.load_state_dict(inner.state_dict())
        order = [param for buffer in inner.buffers for param in buffer.param_index_map]
        truth = {
            param: {
                key: torch.rand(param.numel(), generator=torch.Generator().manual_seed(10 * number + place))
                for place, key in enumerate(shards.KEYS)
            }
            for number, param in enumerate(order)
        }
        for param in inner.model_param_gbuf_map:  # those of which this rank has a part
            part = inner._get_model_param_range_map(param)["param"]
            for key, tensor in inner._get_main_param_and_optimizer_states(param).items():
                tensor.detach().copy_(truth[param][key][part.start : part.end])
        metadata = {
            "distrib_optim_sharding_type": "fully_reshardable",
            "chained_optim_avoid_prefix": True,
            "dp_cp_group": context.dp_cp_group,
        }
        described = [_bare(chunk).sharded_state_dict(metadata=metadata) for chunk in model.chunks]
        described = {f"model{n}": each for n, each in enumerate(described)}
        theirs = outer.sharded_state_dict(described, is_loading=False, metadata=metadata)
        theirs = dict(zip(order, theirs["param_state"].values(), strict=True))
        ours = shards.sharded_state(inner, described, loading=False)
        mine = [param for pieces in shards._buckets(inner) for param in shards._owned_params(inner, pieces)]
        owned = dict(zip(mine, ours["param_state"].values(), strict=True))
        wrong = [
            f"{entry.key}: {name}"
            for param, tensors in owned.items()
            for name, entry in tensors.items()
            if not torch.equal(entry.data.flatten(), truth[param][name]) or entry.key != theirs[param][name].key
        ]
        before = {name: [tensor.clone() for tensor in tensors] for name, tensors in held(inner).items()}
        filled = {
            **ours,
            "param_state": {n: {k: e.data.clone() for k, e in t.items()} for n, t in ours["param_state"].items()},
        }
        for tensors in held(inner).values():
            for tensor in tensors:
                tensor.zero_()
        shards.load_state(inner, filled)
        after = held(inner)
        wrong += [str(n) for n in before if not all(map(torch.equal, before[n], after[n]))]
        zeroed = any(not tensor.any() for tensors in after.values() for tensor in tensors)
    return {"owned": len(owned), "all": len(theirs), "wrong": wrong, "zeroed": zeroed}


def held(optimizer) -> dict:
    """The rank's own flat shards: master weight and moments of each."""
    found = {}
    for number, group in enumerate(optimizer.optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            found[number, index] = [param.detach(), *optimizer.optimizer.state[param].values()]
    return found


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (1, []),
        (2, []),
        (4, ["parallel.grad_bucket_size=3000", "parallel.overlap_grad_reduce=true"]),
        (4, ["parallel.tp_size=2", "parallel.grad_bucket_size=3000"]),
        (4, ["parallel.pp_size=2", "parallel.vpp_size=2"]),
        (2, ["precision.dtype=bf16", "model.tie_embeddings=true"]),
    ],
)
def test_each_parameter_is_whole_with_one_rank_and_comes_back(ranks, recipe, world_size, overrides):
    told = ranks(world_size, collect_and_give_back, dump_config(recipe(*overrides)))
    for each in told:
        assert each["wrong"] == [] and not each["zeroed"]
    tp, pp = (2 if f"parallel.{name}_size=2" in overrides else 1 for name in ("tp", "pp"))
    everything = sum(each["all"] for each in told)
    assert sum(each["owned"] for each in told) * (world_size // (tp * pp)) == everything
    assert all(each["owned"] for each in told), "the work is shared out"
