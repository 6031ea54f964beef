"""What is wrong with texts or losses, found before a model is loaded and told with its place."""

from types import SimpleNamespace

import pytest

from megatron_sky.errors import DataError
from megatron_sky.evaluate.metrics import DocumentLoss
from megatron_sky.evaluate.score_models import Options, _not_finite, failure_of, prepare
from tests.evaluate.test_tables import losses
from tests.tokenizer.test_coder import coder


def domain(*texts: str) -> SimpleNamespace:
    return SimpleNamespace(
        name="web", documents=[SimpleNamespace(number=number, text=text) for number, text in enumerate(texts)]
    )


CHECKPOINT = SimpleNamespace(name="m", path="runs/m", coder=coder())


def test_documents_as_spans():
    (encoded,) = prepare(CHECKPOINT, [domain("abc", "", "d")], 8, Options())
    assert [document.ids.tolist() for document in encoded] == [[97, 98, 99], [], [100]]
    assert [[span.scored for span in document.spans] for document in encoded] == [[3], [], [1]]
    (encoded,) = prepare(CHECKPOINT, [domain("abc", "d")], 8, Options(begin="none"))
    assert [[span.scored for span in document.spans] for document in encoded] == [[2], []]


def test_documents_longer_than_the_context():
    with pytest.raises(
        DataError, match=r"1 of 2 documents are longer than the context of 4 tokens; document 1 .* has 9"
    ):
        prepare(CHECKPOINT, [domain("abc", "d" * 9)], 4, Options())
    ((_, long),) = prepare(CHECKPOINT, [domain("abc", "d" * 9)], 4, Options(stride=2))
    assert sum(span.scored for span in long.spans) == 9 and max(span.num_inputs for span in long.spans) <= 4


def test_a_domain_without_a_prediction():
    with pytest.raises(DataError, match="domain web: no document gives m a token to predict"):
        prepare(CHECKPOINT, [domain("", "a")], 4, Options(begin="none"))


@pytest.mark.parametrize(("sums", "bad"), [([1.0, 2.0], None), ([1.0, float("nan"), float("inf")], "2 of 3")])
def test_losses_that_are_no_numbers(sums, bad):
    documents = [DocumentLoss("web", number, "0", 1, 1, 1, 1, loss) for number, loss in enumerate(sums)]
    failure = _not_finite(CHECKPOINT, documents)
    assert (failure is None) == (bad is None)
    assert failure is None or (bad in failure and "document 1 (counted from 0) of domain web" in failure)


def test_models_that_all_failed_are_one_error():
    text = str(failure_of(losses(failed=("a: nan", "b: inf"))))
    assert text.startswith("a: nan\nb: inf\n  fix: ")
