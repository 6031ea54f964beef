"""Built models and their weights, of any number of ranks."""

import pytest

from megatron_sky.config import dump_config


def weights_by_name(info, path: str) -> dict:
    """{(key, layer): (sum, first value)} of the whole tensors that this rank holds a part of."""
    from megatron_sky.config import load_config
    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.init import _shards
    from tests.models import build

    config = load_config([path])
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        built = build(config, context, ddp=False)
        found = {}
        for chunk in built.chunks:
            for shard in _shards(chunk.sharded_state_dict()):
                place = (shard.key, tuple(shard.global_offset))
                found[place] = shard.data.detach().clone().numpy()
        return {"weights": found, "count": built.num_parameters()}


@pytest.fixture
def built(ranks, recipe, tmp_path):
    def build(world_size: int, *overrides: str) -> list[dict]:
        path = tmp_path / f"config_{len(overrides)}_{world_size}.yaml"
        path.write_text(dump_config(recipe(*overrides)))
        return ranks(world_size, weights_by_name, str(path))

    return build
