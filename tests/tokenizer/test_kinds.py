import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.merge import merge
from megatron_sky.data.tokens.meta import check_source
from megatron_sky.errors import DataError
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.tokenizer.to_huggingface import to_tokenizers
from megatron_sky.tokenizer.train import train_tokenizer
from tests.data.helpers import read_texts


def test_the_same_texts_give_the_same_file(text_corpus, tmp_path):
    texts = [text for file in text_corpus.files["train"].values() for text in read_texts(file)]
    again = train_tokenizer(texts, tmp_path / "again.model", 600)
    assert (tmp_path / "again.model").read_bytes() == text_corpus.tokenizer_path.read_bytes()
    assert again.sha256 == text_corpus.tokenizer.sha256 == load_tokenizer(text_corpus.tokenizer_path).sha256


def test_size_and_control_tokens(text_corpus):
    tokenizer = text_corpus.tokenizer
    assert tokenizer.vocab_size == 600 and tokenizer.eod_id == 2 and tokenizer.bos_id == 1


def test_digits_are_single(text_corpus):
    pieces = [text_corpus.tokenizer.piece(each) for each in text_corpus.tokenizer.encode("12 + 3456 = 3468，共789个")]
    assert all(sum(c.isdigit() for c in piece) <= 1 for piece in pieces)


# U+2581 stands for a space inside SentencePiece and comes back as one; lone surrogates are no valid text.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"))


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_round_trip_of_any_text(text_corpus, text):
    ids = text_corpus.tokenizer.encode(text)
    assert text_corpus.tokenizer.decode(ids) == text
    assert all(0 <= each < 600 for each in ids)


def test_round_trip_of_the_corpus(text_corpus):
    for file in text_corpus.files["test"].values():
        for text in read_texts(file):
            assert text_corpus.tokenizer.decode(text_corpus.tokenizer.encode(text)) == text


def test_a_vocabulary_too_small_for_the_characters_names_the_size_that_is_not(text_corpus, tmp_path):
    texts = [text for file in text_corpus.files["train"].values() for text in read_texts(file)]
    for reserved in ((), ("[A]", "[B]")):
        with pytest.raises(DataError, match=r"vocab_size = 400: \d+ characters make up 98% of the text") as caught:
            train_tokenizer(texts, tmp_path / "t.model", 400, reserved=reserved)
        enough = int(re.search(r"fix: give a vocab_size of (\d+) or more", str(caught.value)).group(1))
        assert train_tokenizer(texts, tmp_path / "t.model", enough, reserved=reserved).vocab_size == enough


def test_a_small_vocabulary_gives_its_characters_more_than_their_part(text_corpus, tmp_path):
    texts = [text for file in text_corpus.files["train"].values() for text in read_texts(file)]
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


@pytest.fixture
def json_folder(text_corpus, tmp_path):
    """Writes a tokenizer.json that has both </s> and <|endoftext|>, and the given settings beside it."""
    pytest.importorskip("tokenizers")

    def write(settings=None, *, name="tokenizer.json", change=lambda library: None):
        library = to_tokenizers(text_corpus.tokenizer)
        library.add_special_tokens(["<|endoftext|>", "<|begin|>"])
        change(library)
        folder = tmp_path / f"t{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        library.save(str(folder / name))
        if settings is not None:
            text = settings if isinstance(settings, str) else json.dumps(settings)
            (folder / "tokenizer_config.json").write_text(text)
        return folder / name

    return write


def test_truncation_and_padding_of_a_file_are_not_applied(text_corpus, tmp_path, json_folder):
    def cut_and_fill(library):
        library.enable_truncation(16)
        library.enable_padding(length=16)

    path = json_folder(change=cut_and_fill)
    tokenizer = load_tokenizer(path)
    for text in ("ab", "The reader waits by the river. " * 9):
        assert tokenizer.encode(text) == text_corpus.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": "<|endoftext|>", "bos_token": "<|begin|>"},
        {"eos_token": {"content": "<|endoftext|>", "lstrip": False}, "bos_token": {"content": "<|begin|>"}},
    ],
)
def test_settings_beside_a_tokenizer_json_name_its_end_and_begin(json_folder, settings):
    tokenizer = load_tokenizer(json_folder(settings).parent)
    assert (tokenizer.piece(tokenizer.eod_id), tokenizer.piece(tokenizer.bos_id)) == ("<|endoftext|>", "<|begin|>")


def test_without_settings_the_usual_spellings_count(json_folder):
    end = {"eos_token": "<|endoftext|>"}
    for path in (json_folder(), json_folder({"eos_token": None}), json_folder(end, name="mine.json")):
        tokenizer = load_tokenizer(path)
        assert (tokenizer.piece(tokenizer.eod_id), tokenizer.piece(tokenizer.bos_id)) == ("</s>", "<s>")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": "<|no|>"}, r"eos_token = '<\|no\|>' is no token"),
        ("{", r"tokenizer_config\.json can't be read"),
        ("[]", r"tokenizer_config\.json is no JSON object"),
    ],
)
def test_settings_that_make_no_sense_are_named(json_folder, settings, message):
    with pytest.raises(DataError, match=message):
        load_tokenizer(json_folder(settings))


def test_the_end_of_a_document_is_part_of_a_job_and_of_a_pair(text_corpus, tmp_path, json_folder):
    one, other = load_tokenizer(json_folder()), load_tokenizer(json_folder({"eos_token": "<|endoftext|>"}))
    assert one.sha256 == other.sha256 and one.eod_id != other.eod_id
    path, prefix = text_corpus.files["test"]["code"], tmp_path / "a"
    (meta,) = tokenize_files([path], prefix, one, TokenizeOptions())
    assert meta.tokenizer.eod_id == one.eod_id
    with pytest.raises(DataError, match="exists already"):
        tokenize_files([path], prefix, other, TokenizeOptions())
    tokenize_files([path], tmp_path / "b", other, TokenizeOptions())
    with pytest.raises(DataError, match=rf"end-of-document id is {other.eod_id}, the first pair's {one.eod_id}"):
        merge([prefix, tmp_path / "b"], tmp_path / "out")
    check = {"vocab_size": one.vocab_size, "tokenizer_sha256": one.sha256}
    assert check_source(prefix, **check, eod_id=one.eod_id) == meta
    with pytest.raises(DataError, match=rf"end with id {one.eod_id}, the recipe's tokenizer .* {other.eod_id}"):
        check_source(prefix, **check, eod_id=other.eod_id)
    (plain,) = tokenize_files([path], tmp_path / "c", one, TokenizeOptions(append_eod=False))
    assert check_source(tmp_path / "c", **check, eod_id=other.eod_id) == plain
