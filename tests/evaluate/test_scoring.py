"""Spans through a model: each loss at its place, whatever the batches and the number of ranks."""

import numpy as np
import pytest
import torch

from megatron_sky.evaluate.scoring import score_spans
from megatron_sky.evaluate.windows import Span


class Pretence:
    """A model whose loss of a token is `target + input before it / 1000`; a token is likeliest where it is even."""

    device = torch.device("cpu")

    def __init__(self, share: int = 0, shares: int = 1, answers: bool = True, last_stage: bool = True):
        self.share, self.shares, self.answers, self.last_stage = share, shares, answers, last_stage
        self.shapes: list[tuple[int, int]] = []

    def losses(self, tokens, places, targets):
        self.shapes.append(tuple(tokens.shape))
        losses = targets.float() + tokens.flatten()[places].float() / 1000
        return (losses, targets % 2 == 0) if self.last_stage else None


def spans() -> list[Span]:
    rng = np.random.default_rng(0)
    made = [Span(rng.integers(0, 100, size), 1) for size in (2, 9, 5, 5, 3, 12, 2)]
    return [Span(span.tokens, scored) for span, scored in zip(made, (1, 4, 4, 1, 2, 11, 1), strict=True)]


def check(scores) -> None:
    for span, score in zip(spans(), scores, strict=True):
        targets, before = span.tokens[-span.scored :], span.tokens[-span.scored - 1 : -1]
        np.testing.assert_allclose(score.losses, targets + before / 1000, rtol=1e-6)
        assert score.likeliest.tolist() == (targets % 2 == 0).tolist()


@pytest.mark.parametrize("batch_tokens", [1, 8, 16, 1000])
def test_every_span_has_its_losses(batch_tokens):
    model = Pretence()
    check(score_spans(model, spans(), batch_tokens=batch_tokens, gather=lambda part: [part]))
    assert all(rows * width <= max(batch_tokens, width) for rows, width in model.shapes)


def test_ranks_share_the_batches():
    models = [Pretence(share, 2) for share in range(2)]
    parts: list[dict] = []
    for model in models:
        try:
            score_spans(model, spans(), batch_tokens=8, gather=lambda part: parts.append(part) or [part])
        except KeyError:  # the other rank's are not there yet
            assert model.shapes
    check(score_spans(models[0], spans(), batch_tokens=8, gather=lambda part: parts[:2]))


def test_an_earlier_stage_has_nothing_to_say():
    model, told = Pretence(answers=False, last_stage=False), []
    with pytest.raises(KeyError):
        score_spans(model, spans(), batch_tokens=8, gather=lambda part: told.append(part) or [part])
    assert told == [{}]


def test_no_spans():
    assert score_spans(Pretence(), [], batch_tokens=8, gather=lambda part: [part]) == []
