"""Intervals by resampling documents."""

import numpy as np

from megatron_sky.evaluate.bootstrap import interval, resample_counts, resampled_loss


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        tokens = rng.integers(5, 50, 80)
        sums = tokens * rng.normal(1.0, 0.2, 80)
        counts = resample_counts(80, rng, 400)
        found = interval(sums.sum() / tokens.sum(), resampled_loss(sums, tokens, counts), 0.9)
        covered += found.low <= 1.0 <= found.high
    assert 0.83 < covered / 200 < 0.96


def test_resamples_draw_as_many_documents_as_there_are():
    counts = resample_counts(37, np.random.default_rng(0), 50)
    assert counts.shape == (50, 37) and (counts.sum(1) == 37).all()
