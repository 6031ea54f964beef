import numpy as np

from megatron_sky.corpus.grams import content_key, gram_hashes, grams_of, share_of, tokens_of


def test_words_and_chinese_characters_are_tokens():
    assert tokens_of("今天２０２３, Word_and MORE!") == ["今", "天", "2023", "word", "and", "more"]


def test_a_short_text_is_one_gram():
    assert list(grams_of(["a", "b"], 5)) == ["a b"] and list(grams_of([], 5)) == []
    assert list(grams_of(["a", "b", "c"], 2)) == ["a b", "b c"]


def test_hashes_are_sorted_and_different():
    hashes = gram_hashes("one two three one two three", 2)
    assert len(hashes) == 3 and np.all(hashes[1:] > hashes[:-1]) and hashes.dtype == np.uint64


def test_content_is_letters_and_digits():
    assert content_key("Hello, World") == content_key("hello world!!\n") != content_key("hello word")


def test_shares_are_spread_evenly():
    values = [share_of(key) for key in range(4000)]
    assert abs(sum(value < 0.1 for value in values) / 4000 - 0.1) < 0.02
