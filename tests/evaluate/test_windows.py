"""Spans and batches: every token is predicted once, from enough tokens before it, and no batch is too large."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.evaluate.windows import cut_spans, num_predictions, plan_batches


@given(
    num_tokens=st.integers(0, 200),
    context=st.integers(1, 40),
    stride=st.integers(1, 40),
    begin=st.sampled_from([None, -1]),
)
def test_every_token_is_predicted_once_after_enough_others(num_tokens, context, stride, begin):
    stride = min(stride, context)
    spans = cut_spans(range(num_tokens), begin=begin, context=context, stride=stride)
    predicted = np.concatenate([span.tokens[-span.scored :] for span in spans]) if spans else np.empty(0, int)
    first = 0 if begin is not None else 1
    assert predicted.tolist() == list(range(first, num_tokens))
    assert len(predicted) == num_predictions(num_tokens, begin is not None)
    for number, span in enumerate(spans):
        assert span.num_inputs <= context
        assert (np.diff(span.tokens) == 1).all()  # a piece of the document, in order
        if number:
            assert span.num_inputs - span.scored >= context - stride


def test_a_document_that_fits_is_one_span_behind_the_begin_token():
    (span,) = cut_spans([5, 6, 7], begin=2, context=3, stride=None)
    assert span.tokens.tolist() == [2, 5, 6, 7] and span.scored == 3


@given(lengths=st.lists(st.integers(1, 50), max_size=60), batch_tokens=st.integers(1, 120))
def test_batches_hold_every_span_once_within_the_limit(lengths, batch_tokens):
    batches = plan_batches(lengths, batch_tokens)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert len(batch) == 1 or longest * len(batch) <= batch_tokens
