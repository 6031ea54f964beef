"""The figures against their definitions, and the report's own table 6."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.evaluate.metrics import DocumentLoss, figures_of, perplexity_of


def document(loss_sum, tokens, reference_tokens, num_bytes=10, domain="a"):
    return DocumentLoss(domain, 0, "", num_bytes, num_bytes, tokens, reference_tokens, loss_sum)


documents = st.lists(
    st.builds(document, st.floats(0, 1e4), st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 5000)),
    min_size=1,
    max_size=20,
)


@given(documents)
def test_figures_follow_their_definitions(some):
    found = figures_of(some)
    total = sum(each.loss_sum for each in some)
    assert found.loss == pytest.approx(total / sum(each.tokens for each in some))
    ratio = sum(each.tokens for each in some) / sum(each.reference_tokens for each in some)
    assert found.normalised_loss == pytest.approx(found.loss * ratio)
    assert found.document_loss == pytest.approx(sum(e.loss_sum / e.reference_tokens for e in some) / len(some))
    assert found.bits_per_byte * math.log(2) * found.bytes == pytest.approx(total)


@given(documents, documents)
def test_the_average_is_over_documents_and_not_over_domains(one, other):
    both = figures_of([*one, *other])
    weighted = figures_of(one).document_loss * len(one) + figures_of(other).document_loss * len(other)
    assert both.document_loss == pytest.approx(weighted / (len(one) + len(other)))
    assert both.perplexity == perplexity_of(both.document_loss)


def test_a_model_is_judged_alike_by_any_number_of_tokens():
    """The same probability of a text, cut into tokens more finely: normalised loss and bits per byte stay."""
    coarse, fine = figures_of([document(50.0, 20, 25)]), figures_of([document(50.0, 40, 25)])
    assert coarse.loss == 2 * fine.loss
    assert (coarse.normalised_loss, coarse.bits_per_byte) == (fine.normalised_loss, fine.bits_per_byte)


def test_the_reports_average_of_skywork_13b():
    """Table 6: 11.58, 21.84, 4.76, 17.28, 4.92, 6.82 over six domains, average 9.42."""
    table = (11.58, 21.84, 4.76, 17.28, 4.92, 6.82)
    found = figures_of([document(math.log(perplexity) * 100, 100, 100) for perplexity in table])
    assert round(found.perplexity, 2) == 9.42
    assert found.perplexity < sum(table) / 6 - 1  # the mean of perplexities is another figure


def test_a_hopeless_model_has_an_infinite_perplexity():
    assert figures_of([document(1e6, 1, 1)]).perplexity == math.inf
