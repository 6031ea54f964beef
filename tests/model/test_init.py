"""Initial weights: the same in every layout, with the asked spread."""

import pytest


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
