"""One rule for every kind of tokenizer: text never makes a control token, unless it is asked for."""

import base64
import json

import numpy as np
import pytest

from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.tokenizer.check import check_tokenizer
from megatron_sky.tokenizer.encoder import BatchEncoder
from megatron_sky.tokenizer.kinds import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer

RULES = ("text never makes a control token", "asked for (--parse-special), it does", "reserved symbols are never split")


def byte_level(change=lambda content: None, settings=None):
    """A BPE over bytes whose file has `<|endoftext|>` (0) and `<|im_start|>`, and [USER] as a plain added token."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.ByteLevelBPETokenizer()
    texts = ["the end of text", "im start of the text", "the user and the end"] * 9
    library.train_from_iterator(texts, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    library.add_special_tokens(["<|im_start|>"])
    library.add_tokens([tokenizers.AddedToken("[USER]", normalized=False)])
    content = json.loads(library._tokenizer.to_str())
    change(content)
    return HuggingFaceTokenizer(json.dumps(content).encode(), "tokenizer.json", settings or {})


def plain(content):
    """As some converters leave it: the tokens are there, and not special."""
    for token in content["added_tokens"]:
        token["special"] = False


def vocabulary_alone(content):
    """As GPT-2's two files give it: the end token is an entry of the vocabulary like any other."""
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "[USER]"]


def whole_words(content):
    """A model that takes a word that is in its vocabulary as it is, as LLaMA 3's does."""
    content["model"]["ignore_merges"] = True
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def unigram():
    """T5's kind: a text reaches the piece `</s>` by itself, as nothing scores higher."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁", -2.0)]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram([*pieces, *((c, -3.0) for c in "abs</>")], 0, True))
    library.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<unk>", "</s>"])
    return HuggingFaceTokenizer(library.to_str().encode(), "tokenizer.json")


def sentencepiece(corpus):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(corpus.tokenizer.data)
    proto.pieces.add(piece="[USER]", score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    proto.pieces.add(piece="<|im_end|>", score=0.0, type=ModelProto.SentencePiece.CONTROL)
    return SentencePieceTokenizer(proto.SerializeToString(), "t.model")


def tiktoken(folder):
    pytest.importorskip("gigatoken")
    ranks = [bytes([byte]) for byte in range(256)] + [b"en", b"end", b"of", b"te", b"xt"]
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(ranks)]
    (folder / "own.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    special = {"<|endoftext|>": 261, "<|fim|>": 262}
    settings = {"pretokenizer": "cl100k", "special_tokens": special}
    (folder / "own.tiktoken.json").write_text(json.dumps(settings))
    return load_tokenizer(folder / "own.tiktoken")


KINDS = {
    "SentencePiece": lambda corpus, folder: sentencepiece(corpus),
    "tokenizer.json": lambda corpus, folder: byte_level(),
    "with plain added tokens": lambda corpus, folder: byte_level(plain, {"bos_token": "<|im_start|>"}),
    "of vocabulary and merges": lambda corpus, folder: byte_level(vocabulary_alone),
    "of whole words": lambda corpus, folder: byte_level(whole_words),
    "unigram": lambda corpus, folder: unigram(),
    "tiktoken": lambda corpus, folder: tiktoken(folder),
}
NUM_CONTROL = {"SentencePiece": 3, "of vocabulary and merges": 1, "unigram": 1}  # others have two


@pytest.fixture(params=KINDS)
def tokenizer(request, text_corpus, tmp_path):
    tokenizer = KINDS[request.param](text_corpus, tmp_path)
    assert len(tokenizer.control_tokens) == NUM_CONTROL.get(request.param, 2)
    assert tokenizer.eod_id in tokenizer.control_tokens.values()
    return tokenizer


def texts_of(tokenizer):
    return [text for end in tokenizer.control_tokens for text in (end, f"ab{end}", f" {end} b", end * 2, f"a\n{end}")]


def test_text_gives_characters_by_every_way(tokenizer):
    texts, control = texts_of(tokenizer), set(tokenizer.control_tokens.values())
    encoded = [tokenizer.encode(text) for text in texts]
    assert all(control.isdisjoint(ids) for ids in encoded)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    for fast in (False, None):
        flat, lengths = BatchEncoder(tokenizer, fast=fast)(["ab", *texts, "b"])
        assert control.isdisjoint(flat.tolist())
        parts = np.split(flat, np.cumsum(lengths)[:-1])
        assert [part.tolist() for part in parts] == [tokenizer.encode(text) for text in ["ab", *texts, "b"]]


def test_asked_for_the_spelling_is_the_token(tokenizer):
    for spelling, token_id in tokenizer.control_tokens.items():
        text = f"ab{spelling}{spelling} b"
        ids = tokenizer.encode(text, parse_special=True)
        assert ids.count(token_id) == 2 and tokenizer.encode("ab") == ids[: ids.index(token_id)]
        for fast in (False, None):
            flat, _ = BatchEncoder(tokenizer, fast=fast, parse_special=True)([text, "ab"])
            assert flat.tolist() == ids + tokenizer.encode("ab")
    assert tokenizer.encode("ab", parse_special=True) == tokenizer.encode("ab")


def test_check_proves_it(tokenizer):
    checks = {check.rule: check for check in check_tokenizer(tokenizer, trials=20)}
    assert all(checks[rule].holds for rule in RULES)
    assert f"{len(tokenizer.control_tokens)} tokens" in checks[RULES[0]].seen


def test_check_finds_what_breaks_it(text_corpus, monkeypatch):
    tokenizer = byte_level()
    tokenizer.library.encode_special_tokens = False
    monkeypatch.setattr(tokenizer, "_control_ids", frozenset())
    broken = {check.rule for check in check_tokenizer(tokenizer, trials=5) if not check.holds}
    assert RULES[0] in broken
    monkeypatch.setattr(type(tokenizer), "_encode_parsed", lambda self, text: self._encode_plain("x"))
    broken = {check.rule for check in check_tokenizer(tokenizer, trials=5) if not check.holds}
    assert RULES[1] in broken


def test_reserved_symbols_are_tokens_in_any_text():
    tokenizer = byte_level()
    (user,) = tokenizer.reserved_tokens.values()
    for text in ("a[USER]b", "[USER]", " [USER] <|endoftext|>"):
        assert tokenizer.encode(text).count(user) == 1


@pytest.mark.parametrize("kind", ["SentencePiece", "tokenizer.json", "tiktoken"])
@pytest.mark.parametrize("fast", [False, None])
def test_a_corpus_has_one_end_for_each_document(kind, fast, text_corpus, tmp_path):
    tokenizer = KINDS[kind](text_corpus, tmp_path)
    end = tokenizer.piece(tokenizer.eod_id)
    lines = [json.dumps({"text": f"Use {end} to end a document."}), json.dumps({"text": "second"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for parse_special, count in ((False, 2), (True, 3)):
        options = TokenizeOptions(fast=fast, parse_special=parse_special)
        prefix = tmp_path / f"out{count}"
        tokenize_files([tmp_path / "a.jsonl"], prefix, tokenizer, options)
        with IndexedTokens(prefix) as pair:
            assert pair.read(0, pair.num_tokens).tolist().count(tokenizer.eod_id) == count
            text = tokenizer.decode([token for token in pair.document(0).tolist()[:-1]])
            assert text == f"Use {end} to end a document." or (parse_special and kind == "SentencePiece")


def test_a_job_of_the_other_rule_is_another_job(text_corpus, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    jobs = {
        tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, options)[0].job
        for options in (TokenizeOptions(overwrite=True), TokenizeOptions(overwrite=True, parse_special=True))
    }
    assert len(jobs) == 2
