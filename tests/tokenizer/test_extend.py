import pytest

from megatron_sky.errors import DataError
from megatron_sky.tokenizer.check import check_tokenizer
from megatron_sky.tokenizer.extend import extend_tokenizer, reserved_symbols
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.tokenizer.to_huggingface import to_tokenizers
from megatron_sky.tokenizer.train import train_tokenizer
from tests.data.helpers import read_texts


@pytest.fixture(scope="module")
def texts(text_corpus):
    return [text for file in text_corpus.files["train"].values() for text in read_texts(file)]


@pytest.fixture(scope="module")
def extended(text_corpus, texts, tmp_path_factory):
    base = train_tokenizer([t for t in texts if t.isascii()], tmp_path_factory.mktemp("base") / "base.model", 500)
    out = tmp_path_factory.mktemp("extended") / "extended.model"
    extend_tokenizer(base, texts, out, vocab_size=1200, num_characters=500, reserved=reserved_symbols(17))
    return base, load_tokenizer(out)


def test_the_size_is_exact_and_the_base_is_kept(extended):
    base, tokenizer = extended
    assert tokenizer.vocab_size == 1200
    assert all(tokenizer.piece(each) == base.piece(each) for each in range(base.vocab_size))
    reserved = [tokenizer.piece(1200 - 17 + each) for each in range(17)]
    assert reserved[:4] == ["[USER]", "[BOT]", "[SEP]", "[RESERVED_0]"] and reserved[16] == "[RESERVED_13]"
    ascii_text = "The gardener waters the rose."
    assert tokenizer.encode(ascii_text) == base.encode(ascii_text)


def test_chinese_takes_fewer_tokens(extended, text_corpus):
    base, tokenizer = extended
    text = "".join(read_texts(text_corpus.files["test"]["zh_web"]))
    assert 3 * len(tokenizer.encode(text)) < len(base.encode(text))


def test_every_rule_holds(extended, text_corpus):
    sample = [text for file in text_corpus.files["test"].values() for text in read_texts(file)]
    for tokenizer in (text_corpus.tokenizer, *extended):
        checks = check_tokenizer(tokenizer, sample, trials=300)
        assert len(checks) >= 7 and not [each for each in checks if not each.holds]
        assert any("characters per token, zh" in each.rule for each in checks)


def test_broken_rules_are_found(text_corpus):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    from megatron_sky.tokenizer.kinds import SentencePieceTokenizer

    proto = ModelProto.FromString(text_corpus.tokenizer.data)
    proto.pieces[500].piece = "12"
    failed = {
        each.rule
        for each in check_tokenizer(SentencePieceTokenizer(proto.SerializeToString(), "x"), trials=10)
        if not each.holds
    }
    assert "digits are single" in failed


def test_hugging_faces_files_can_be_used(extended, tmp_path):
    _, tokenizer = extended
    to_tokenizers(tokenizer).save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.vocab_size == 1200 and loaded.eod_id == 2 and loaded.bos_id == 1
    for text in ("The cook stirs the soup. 123", "渔民在河边修补渔网。"):
        assert loaded.encode(text) == tokenizer.encode(text) and loaded.decode(loaded.encode(text)) == text
    checks = check_tokenizer(loaded, trials=200)
    assert not [each for each in checks if not each.holds]


def test_rank_files_can_be_used(tmp_path):
    import base64
    import json

    pytest.importorskip("gigatoken")
    ranks = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the"]
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(ranks)]
    (tmp_path / "own.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    settings = {"pretokenizer": "cl100k", "special_tokens": {"<|endoftext|>": 259}}
    (tmp_path / "own.tiktoken.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path / "own.tiktoken")
    assert loaded.vocab_size == 260 and loaded.eod_id == 259
    assert loaded.encode("the the") == [257, 258] and loaded.decode(loaded.encode("茶 the")) == "茶 the"


def test_what_does_not_fit_is_named(extended, texts, tmp_path):
    base, _ = extended
    out = tmp_path / "x.model"
    with pytest.raises(DataError, match="ask for at least 517"):
        extend_tokenizer(base, texts, out, vocab_size=510, reserved=reserved_symbols(17))
    with pytest.raises(DataError, match="too few Chinese words"):
        extend_tokenizer(base, texts[:50], out, vocab_size=9000, num_characters=10)
    with pytest.raises(DataError, match="in the vocabulary already"):
        extend_tokenizer(base, texts, out, vocab_size=1200, reserved=["</s>"])
    assert not out.exists()
