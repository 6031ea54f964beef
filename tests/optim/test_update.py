"""What is measured of a step's gradients before they are applied."""

import math
from types import SimpleNamespace

import pytest

from megatron_sky.optim.update import measure


def optimizer(overflows: bool, scale: float | None):
    """As megatron-core's optimizers answer: an overflow lowers the loss scale at once."""
    scaler = None if scale is None else SimpleNamespace(scale=scale, min_scale=1.0)

    def prepare_grads() -> bool:
        if overflows:
            scaler.scale = max(scaler.scale / 2, scaler.min_scale)
        return overflows

    return SimpleNamespace(grad_scaler=scaler, prepare_grads=prepare_grads, get_grad_norm=lambda: 2.5)


@pytest.mark.parametrize(
    ("overflows", "scale", "norm"),
    [(False, None, 2.5), (False, 1.0, 2.5), (True, 8.0, None), (True, 2.0, None), (True, 1.0, math.inf)],
)
def test_an_overflow_counts_only_where_no_lower_loss_scale_is_left(overflows, scale, norm):
    one = optimizer(overflows, scale)
    assert measure(one) == norm
    one = optimizer(overflows, scale)
    chained = SimpleNamespace(
        chained_optimizers=[one], prepare_grads=one.prepare_grads, get_grad_norm=one.get_grad_norm
    )
    assert measure(chained) == norm
