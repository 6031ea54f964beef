"""delta1 and delta2, their intervals, verdicts and matched comparisons; the report's table 8 from its own losses."""

import numpy as np
import pytest

from megatron_sky.evaluate.leakage import (
    LEAKED,
    NOT_LEAKED,
    NOT_TRAINED,
    POSSIBLE,
    REFERENCE,
    TEST,
    TRAIN,
    TRAINED,
    UNLIKE,
    SetLosses,
    compare,
    judge,
    published,
    verdict_test,
    verdict_train,
)

# model: L_test, L_train, L_ref, delta1, delta2 as printed; what stands out
TABLE_8 = {
    "ChatGLM3-6B": (0.99, 0.78, 0.99, 0.0, 0.21, NOT_LEAKED, TRAINED),
    "Qwen-7B": (1.07, 0.64, 1.10, -0.03, 0.43, NOT_LEAKED, TRAINED),
    "Baichuan2-13B": (1.09, 0.72, 1.12, -0.03, 0.37, NOT_LEAKED, TRAINED),
    "Qwen-14B": (1.03, 0.42, 1.14, -0.11, 0.61, LEAKED, TRAINED),
    "InternLM-20B": (1.20, 1.09, 1.19, 0.01, 0.11, NOT_LEAKED, TRAINED),
    "Aquila2-34B": (0.78, 0.39, 1.29, -0.51, 0.39, LEAKED, TRAINED),
    "LLaMA2-13B": (1.36, 1.38, 1.33, 0.03, -0.01, NOT_LEAKED, NOT_TRAINED),
    "Skywork-13B": (1.01, 0.97, 1.00, 0.01, 0.04, NOT_LEAKED, NOT_TRAINED),
}


@pytest.mark.parametrize("model", TABLE_8)
def test_table_8(model):
    """Within the rounding of the printed losses: LLaMA2's delta2 is -0.02 from them and printed as -0.01."""
    test, train, reference, delta1, delta2, of_test, of_train = TABLE_8[model]
    found = published(test, train, reference)
    assert found.delta1.value == pytest.approx(delta1, abs=0.0101)
    assert found.delta2.value == pytest.approx(delta2, abs=0.0101)
    assert verdict_test(found).finding == of_test
    assert verdict_train(found).finding == of_train


def make_set(rng, documents, mean, *, length=(20, 60), spread=0.3, ids=50):
    lengths = rng.integers(*length, documents)
    return SetLosses.of(
        [rng.integers(0, ids, n) for n in lengths],
        [(rng.gamma(2.0, mean / 2, n) * rng.lognormal(-(spread**2) / 2, spread)).astype(np.float32) for n in lengths],
    )


def test_a_leak_is_found_by_every_comparison_and_a_clean_model_is_not_accused():
    rng = np.random.default_rng(5)
    clean = {TRAIN: make_set(rng, 400, 1.0), TEST: make_set(rng, 400, 1.0), REFERENCE: make_set(rng, 400, 1.0)}
    leaked = clean | {TEST: make_set(rng, 400, 0.6)}
    taught = clean | {TRAIN: make_set(rng, 400, 0.6)}
    assert [each.basis for each in compare(clean)] == ["plain", "length-matched", "token-matched"]
    assert judge(compare(clean), verdict_test).finding == NOT_LEAKED
    assert judge(compare(clean), verdict_train).finding == NOT_TRAINED
    assert judge(compare(leaked), verdict_test).finding == LEAKED
    assert judge(compare(taught), verdict_train).finding == TRAINED
    assert judge(compare(taught), verdict_test).finding == NOT_LEAKED


def test_few_documents_give_no_certain_verdict():
    rng = np.random.default_rng(1)
    sets = {TRAIN: make_set(rng, 6, 1.0), TEST: make_set(rng, 6, 0.85, spread=0.8), REFERENCE: make_set(rng, 6, 1.0)}
    found = compare(sets)[0]
    assert found.delta1.low < -0.05 < found.delta1.high
    sure = published(0.85, 1.0, 1.0)
    assert verdict_test(sure).finding == LEAKED  # the figure alone
    assert verdict_test(found).finding != LEAKED


def test_a_reference_that_is_another_kind_of_text_is_said_so():
    assert verdict_test(published(0.9, 0.9, 3.0)).finding == UNLIKE
    assert verdict_test(published(1.2, 1.2, 1.0)).finding == UNLIKE
    assert "clean" in verdict_test(published(0.9, 0.9, 3.0)).reason


def test_equal_lengths_undo_a_difference_that_is_one_of_length():
    """Short documents have high losses: a test split of longer ones looks easier, and is not at equal lengths."""
    rng = np.random.default_rng(2)

    def of(documents, short_share):
        short = rng.random(documents) < short_share
        lengths = np.where(short, rng.integers(10, 20, documents), rng.integers(60, 90, documents))
        losses = [np.full(n, 1.6 if n < 20 else 0.8) + rng.normal(0, 0.1, n) for n in lengths]
        return SetLosses.of([rng.integers(0, 30, n) for n in lengths], losses)

    found = {each.basis: each for each in compare({TRAIN: of(300, 0.5), TEST: of(300, 0.1), REFERENCE: of(300, 0.7)})}
    assert found["plain"].delta1.high < -0.1
    assert abs(found["length-matched"].delta1.value) < 0.05
    assert judge(list(found.values()), verdict_test).finding == POSSIBLE


def test_equal_tokens_undo_a_difference_that_is_one_of_vocabulary():
    rng = np.random.default_rng(3)

    def of(documents, hard_share):
        ids = [(rng.random(40) < hard_share).astype(int) for _ in range(documents)]
        return SetLosses.of(ids, [np.where(each == 1, 3.0, 0.5) + rng.normal(0, 0.05, 40) for each in ids])

    found = {each.basis: each for each in compare({TRAIN: of(200, 0.3), TEST: of(200, 0.3), REFERENCE: of(200, 0.6)})}
    assert found["plain"].delta1.high < -0.5
    assert found["token-matched"].delta1.value == pytest.approx(0, abs=0.02)
    assert found["token-matched"].coverage == 1.0


def test_sets_without_a_token_in_common_have_no_token_matched_comparison():
    ids = {TRAIN: 1, TEST: 2, REFERENCE: 3}
    sets = {name: SetLosses.of([np.full(4, each)] * 5, [np.ones(4)] * 5) for name, each in ids.items()}
    assert [each.basis for each in compare(sets)] == ["plain", "length-matched"]
