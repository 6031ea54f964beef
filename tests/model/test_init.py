"""Initial weights: the same in every layout, with the asked spread."""

import pytest

from megatron_sky.config import dump_config


def weights_by_name(info, path: str) -> dict:
    """{(key, layer): (sum, first value)} of the whole tensors that this rank holds a part of."""
    from megatron_sky.config import load_config
    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model
    from megatron_sky.model.init import _shards

    config = load_config([path])
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        built = build_model(
            config.model,
            parallel=config.parallel,
            precision=config.precision,
            train=config.train,
            context=context,
            ddp=False,
        )
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


def test_weights_are_equal_in_every_layout(built):
    import numpy as np

    whole = built(1)[0]["weights"]
    for overrides in (["parallel.tp_size=2"], ["parallel.pp_size=2"], ["parallel.pp_size=2", "parallel.vpp_size=2"]):
        seen = set()
        for rank in built(2, *overrides):
            for (key, offset), part in rank["weights"].items():
                (start, full) = next(
                    (o, w) for (k, o), w in whole.items() if k == key and _holds(o, w.shape, offset, part.shape)
                )
                at = tuple(
                    slice(a - b, a - b + n)
                    for a, b, n in zip(offset[-part.ndim :], start[-part.ndim :], part.shape, strict=True)
                )
                assert np.array_equal(full[at], part), (key, offset)
                seen.add(key)
        assert seen == {key for key, _ in whole}


def _holds(start, shape, offset, part_shape) -> bool:
    lead = len(start) - len(shape)
    return start[:lead] == offset[:lead] and all(
        s <= o and o + n <= s + m for s, m, o, n in zip(start[lead:], shape, offset[lead:], part_shape, strict=True)
    )


def test_initial_values_have_the_asked_spread(built, recipe):
    weights = built(1, "model.hidden_size=128", "model.ffn_hidden_size=512")[0]["weights"]
    spread = {key: value.std() for (key, _), value in weights.items() if value.ndim > 1}
    for key, std in spread.items():
        wanted = 0.02 / 8**0.5 if key.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0.02
        assert std == pytest.approx(wanted, rel=0.05), key
    norms = [value for (key, _), value in weights.items() if "norm" in key]
    assert norms and all((norm == 1).all() for norm in norms)
