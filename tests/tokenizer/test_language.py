"""A text's language by its letters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.tokenizer.language import LANGUAGES, language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat.", "en"),
        ("猫坐在垫子上。", "zh"),
        ("我们用 GPU 训练模型", "zh"),
        ("for (i = 0; i < 10; ++i) { a[i] += 2 * b[i]; }", "code and numbers"),
        ("3.14159 2.71828", "code and numbers"),
        ("Кошка сидит на ковре", "other"),
        ("", "code and numbers"),
        (" \n\t", "code and numbers"),
    ],
)
def test_languages(text, language):
    assert language_of(text) == language


@given(st.text())
def test_every_text_has_one_of_them(text):
    assert language_of(text) in LANGUAGES


@given(st.text(alphabet="abc中文12 ", max_size=30))
def test_space_says_nothing(text):
    assert language_of(text) == language_of("  ".join(text))
