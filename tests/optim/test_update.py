"""What is measured of a step's gradients before they are applied."""

import math
from types import SimpleNamespace

import pytest
import torch

from megatron_sky.optim import update


def optimizer(overflows: bool, scale: float | None):
    """As megatron-core's optimizers answer: an overflow lowers the loss scale at once."""
    scaler = None if scale is None else SimpleNamespace(scale=scale, min_scale=1.0)

    def prepare_grads() -> bool:
        if overflows:
            scaler.scale = max(scaler.scale / 2, scaler.min_scale)
        return overflows

    return SimpleNamespace(
        grad_scaler=scaler,
        prepare_grads=prepare_grads,
    )


@pytest.mark.parametrize(
    ("overflows", "scale", "norm"),
    [(False, None, 2.5), (False, 1.0, 2.5), (True, 8.0, None), (True, 2.0, None), (True, 1.0, math.inf)],
)
def test_an_overflow_counts_only_where_no_lower_loss_scale_is_left(overflows, scale, norm, monkeypatch):
    monkeypatch.setattr(update, "_squared_norm", lambda optimizer, device: torch.tensor([6.25], dtype=torch.float64))
    sums = torch.tensor([7.0, 8.0], dtype=torch.float64)
    assert update.measure(optimizer(overflows, scale), sums) == (norm, [7.0, 8.0])
    one = optimizer(overflows, scale)
    chained = SimpleNamespace(chained_optimizers=[one], prepare_grads=one.prepare_grads)
    assert update.measure(chained, sums) == (norm, [7.0, 8.0])
