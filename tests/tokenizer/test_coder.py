"""What goes before a text, by what the tokenizer has."""

import pytest

from megatron_sky.errors import ConfigError, DataError
from megatron_sky.tokenizer.coder import BEGINS, TextCoder, file_coder


def coder(bos: int | None = 1, eod: int | None = 2, *, adds_bos: bool = False) -> TextCoder:
    def encode(text: str) -> list[int]:
        return [ord(char) for char in text]

    return TextCoder(300, "t", "0" * 64, encode, lambda ids: "".join(map(chr, ids)), bos, eod, adds_bos)


@pytest.mark.parametrize(
    ("given", "begin", "expected"),
    [
        (coder(), "auto", 2),  # in training the end of the document before
        (coder(adds_bos=True), "auto", 1),
        (coder(eod=None), "auto", 1),
        (coder(bos=None), "auto", 2),
        (coder(bos=None, eod=None), "auto", None),
        (coder(bos=0), "bos", 0),
        (coder(), "eod", 2),
        (coder(), "none", None),
        (coder(bos=None), "none", None),
    ],
)
def test_the_token_before_a_document(given, begin, expected):
    assert given.begin_id(begin) == expected


@pytest.mark.parametrize(("given", "begin"), [(coder(bos=None), "bos"), (coder(eod=None), "eod")])
def test_a_token_that_it_has_not(given, begin):
    with pytest.raises(ConfigError, match=f"--begin = '{begin}': the tokenizer t has no such token"):
        given.begin_id(begin)


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        (coder(), "ab", [97, 98]),
        (coder(adds_bos=True), "ab", [1, 97, 98]),
        (coder(bos=0, adds_bos=True), "", [0]),
        (coder(), "", [2]),
        (coder(bos=None, adds_bos=True), "a", [97]),
    ],
)
def test_prompts(given, text, expected):
    assert given.encode_prompt(text) == expected


def test_an_empty_prompt_needs_a_token_to_predict_after():
    with pytest.raises(DataError, match="neither a begin nor an end token"):
        coder(bos=None, eod=None).encode_prompt("")


def test_of_a_file(corpus):
    opened = file_coder(corpus / "tokenizer.model", adds_bos=True)
    assert opened.adds_bos == (opened.bos_id is not None) and opened.name == "tokenizer.model"
    assert opened.decode(opened.encode("hello")) == "hello" and len(opened.sha256) == 64
    assert set(BEGINS) == {"auto", "bos", "eod", "none"}
