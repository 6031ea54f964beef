"""megatron-core's optimizer as the recipe asks: our Adam where there is no other, decay where it belongs."""

import pytest

from megatron_sky.config import dump_config
from tests.recipes import config_of


def groups(info, config_text: str) -> dict:

    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model
    from megatron_sky.optim.build import build_optimizer

    config = config_of(config_text)
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        built = build_model(
            config.model, parallel=config.parallel, precision=config.precision, train=config.train, context=context
        )
        optimizer = build_optimizer(
            config.optimizer,
            schedule=config.schedule,
            parallel=config.parallel,
            precision=config.precision,
            chunks=built.chunks,
        )
        (inner,) = getattr(optimizer, "chained_optimizers", [optimizer])
        found = {
            "kind": type(inner).__name__,
            "adam": type(inner.optimizer).__module__,
            "groups": [
                (group["wd_mult"], group["lr"], sum(p.numel() for p in group["params"]))
                for group in optimizer.param_groups
            ],
            "parameters": built.num_parameters(),
        }
        built.release()
    return found


@pytest.mark.parametrize(("sharded", "kind"), [("true", "DistributedOptimizer"), ("false", "FP32Optimizer")])
def test_norms_and_biases_do_not_decay(sharded, kind, ranks, recipe):
    from megatron_sky.distributed import device

    (found,) = ranks(1, groups, dump_config(recipe(f"parallel.distributed_optimizer={sharded}")))
    assert found["kind"] == kind
    assert device.has_gpu() or found["adam"] == "megatron_sky.optim.adam"
    sizes = {decay: size for decay, _, size in found["groups"]}
    assert sizes.keys() == {0.0, 1.0} and sum(sizes.values()) == found["parameters"]
    assert sizes[0.0] == 32 * (2 * 4 + 1), "the norms alone: two a layer and the last"
    assert {lr for _, lr, _ in found["groups"]} == {1e-2}
