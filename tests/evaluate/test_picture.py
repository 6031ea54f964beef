"""Pictures of results: drawn whatever the figures are."""

import math

import pytest

from megatron_sky.evaluate.picture import leakage_png, loss_png
from tests.evaluate.test_tables import leakage, losses

PNG = b"\x89PNG\r\n"


@pytest.mark.parametrize("names", [("a",), ("a", "b|c"), tuple(f"model_{n}" for n in range(12))])
def test_losses(names):
    assert loss_png(losses(*names)).startswith(PNG)


def test_leakage():
    assert leakage_png(leakage()).startswith(PNG)


def test_a_loss_that_is_infinite(monkeypatch):
    from dataclasses import replace

    results = losses("a", "b")
    first = results.models[0]
    worse = replace(
        first, domains={"web": replace(first.domains["web"], perplexity=math.inf, normalised_loss=math.inf)}
    )
    assert loss_png(replace(results, models=(worse, *results.models[1:]))).startswith(PNG)
