import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_sky.errors import DataError

from .helpers import read_texts


def test_the_same_texts_give_the_same_file(corpus, tmp_path):
    texts = [text for file in corpus.files["train"].values() for text in read_texts(file)]
    again = train_tokenizer(texts, tmp_path / "again.model", 600)
    assert (tmp_path / "again.model").read_bytes() == corpus.tokenizer_path.read_bytes()
    assert again.sha256 == corpus.tokenizer.sha256 == load_tokenizer(corpus.tokenizer_path).sha256


def test_size_and_control_tokens(corpus):
    tokenizer = corpus.tokenizer
    assert tokenizer.vocab_size == 600 and tokenizer.eod_id == 2 and tokenizer.bos_id == 1


def test_digits_are_single(corpus):
    pieces = [corpus.tokenizer.piece(each) for each in corpus.tokenizer.encode("12 + 3456 = 3468，共789个")]
    assert all(sum(c.isdigit() for c in piece) <= 1 for piece in pieces)


# U+2581 stands for a space inside SentencePiece and comes back as one; lone surrogates are no valid text.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"))


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_round_trip_of_any_text(corpus, text):
    ids = corpus.tokenizer.encode(text)
    assert corpus.tokenizer.decode(ids) == text
    assert all(0 <= each < 600 for each in ids)


def test_round_trip_of_the_corpus(corpus):
    for file in corpus.files["test"].values():
        for text in read_texts(file):
            assert corpus.tokenizer.decode(corpus.tokenizer.encode(text)) == text


def test_a_vocabulary_too_small_for_the_characters_names_the_size_that_is_not(corpus, tmp_path):
    texts = [text for file in corpus.files["train"].values() for text in read_texts(file)]
    for reserved in ((), ("[A]", "[B]")):
        with pytest.raises(DataError, match=r"vocab_size = 400: \d+ characters make up 98% of the text") as caught:
            train_tokenizer(texts, tmp_path / "t.model", 400, reserved=reserved)
        enough = int(re.search(r"mend: give a vocab_size of (\d+) or more", str(caught.value)).group(1))
        assert train_tokenizer(texts, tmp_path / "t.model", enough, reserved=reserved).vocab_size == enough


def test_a_small_vocabulary_gives_its_characters_more_than_their_part(corpus, tmp_path):
    texts = [text for file in corpus.files["train"].values() for text in read_texts(file)]
    small = train_tokenizer(texts, tmp_path / "t.model", 512)
    assert small.vocab_size == 512
    assert small.decode(small.encode("The reader 清晨，龘")) == "The reader 清晨，龘"


def test_bad_files_and_sizes_are_named(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match="no SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([""], tmp_path / "t.model", 600)
    with pytest.raises(DataError, match="at least 320"):
        train_tokenizer(["a"], tmp_path / "t.model", 100)
    with pytest.raises(DataError, match="could not build 5000 tokens"):
        train_tokenizer(["ab ab"], tmp_path / "t.model", 5000)
    assert not (tmp_path / "t.model").exists()
