"""Learning a vocabulary: the size that was asked, every character, and the same file from the same texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.errors import DataError
from megatron_sky.tokenizer.train import SMALLEST_VOCAB, character_counts, train_tokenizer, training_lines

TEXTS = ["the cat sat on the mat and the dog sat on the log", "今天天气很好，我们去公园。"] * 20


def test_a_vocabulary_of_exactly_this_size(tmp_path):
    trained = train_tokenizer(TEXTS, tmp_path / "t.model", 340, reserved=["<|user|>"])
    assert trained.vocab_size == 340 and trained.reserved_tokens.keys() == {"<|user|>"}
    for text in [*TEXTS, "unseen: ß😀\t\n", "12 34"]:
        assert trained.decode(trained.encode(text)) == text
    again = train_tokenizer(TEXTS, tmp_path / "u.model", 340, reserved=["<|user|>"])
    assert again.sha256 == trained.sha256


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (TEXTS, SMALLEST_VOCAB - 1, "must be at least 320"),
        ([], 400, "can't be built from no text"),
        (["", "\n"], 400, "can't be built from no text"),
        (TEXTS, 100_000, "could not build 100000 tokens"),
        (["".join(map(chr, range(0x4E00, 0x5100)))], 400, "give a vocab_size of"),
    ],
)
def test_what_can_not_be_built(texts, size, message, tmp_path):
    with pytest.raises(DataError, match=message):
        train_tokenizer(texts, tmp_path / "t.model", size)
    assert list(tmp_path.iterdir()) == []


def test_the_size_that_is_advised_is_enough(tmp_path):
    texts = ["".join(map(chr, range(0x4E00, 0x4F00))) * 3]
    with pytest.raises(DataError) as caught:
        train_tokenizer(texts, tmp_path / "t.model", 400)
    advised = int(str(caught.value).split("vocab_size of ")[1].split()[0])
    assert train_tokenizer(texts, tmp_path / "t.model", advised).vocab_size == advised


def test_a_place_that_can_not_be_written(tmp_path):
    with pytest.raises(DataError, match=r"none/t\.model can't be written"):
        train_tokenizer(TEXTS, tmp_path / "none" / "t.model", 340)


@given(st.text(max_size=50), st.integers(1, 3))
def test_lines_are_cut_and_nothing_but_nul_is_lost(text, times):
    long = text * (times * 40)
    lines = list(training_lines(long))
    assert "".join(lines) == long.replace("\n", "").replace("\0", "")
    assert all(0 < len(line.encode("utf-8", "surrogatepass")) <= 4000 for line in lines)


def test_characters_are_counted():
    assert character_counts(["aab", "b"]) == {"a": 2, "b": 2} and not character_counts([])
