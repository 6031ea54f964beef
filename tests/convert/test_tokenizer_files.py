"""The tokenizer's files: the same ids in transformers, and the chat template."""

import json

import pytest

from megatron_sky.convert.sample_text import SAMPLES
from megatron_sky.convert.tokenizer_files import write
from megatron_sky.data.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")


def read_corpus(folder):
    for path in sorted((folder / "text").rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[:60]:
            yield json.loads(line)["text"][:1500]


def test_transformers_gives_the_same_ids_and_text(hf, corpus):
    ours = load_tokenizer(corpus / "tokenizer.model")
    theirs = transformers.AutoTokenizer.from_pretrained(str(hf("tp2")))
    texts = [*SAMPLES, *read_corpus(corpus), "", " ", "a", "  a", "\n", "▁ ▁", "[USER] is no token here"]
    assert len(texts) > 100
    for text in texts:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids == theirs(text)["input_ids"], text
        assert theirs.decode(ids) == ours.decode(ids)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (1, 2, 0)
    assert theirs.chat_template is None


def test_chat_symbols_are_tokens_and_the_template_uses_them(hf, corpus, tmp_path):
    from dataclasses import replace

    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    from megatron_sky.convert.sources import open_source

    proto = ModelProto.FromString((corpus / "tokenizer.model").read_bytes())
    for symbol in ("[USER]", "[BOT]", "[SEP]"):
        proto.pieces.add(piece=symbol, score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    path = tmp_path / "chat.model"
    path.write_bytes(proto.SerializeToString())
    (tmp_path / "hf").mkdir()
    write(replace(open_source(hf("tp2")), tokenizer=path), tmp_path / "hf")
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
    sentencepiece = load_tokenizer(path)
    user, bot, sep = (sentencepiece.processor.piece_to_id(symbol) for symbol in ("[USER]", "[BOT]", "[SEP]"))
    conversation = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "你呢"},
    ]
    text = loaded.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == "</s><s>[USER]How are you?[SEP][BOT]Well.[SEP][USER]你呢[SEP][BOT]"
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    encode = sentencepiece.encode
    assert ids == [
        2,
        1,
        user,
        *encode("How are you?"),
        sep,
        bot,
        *encode("Well."),
        sep,
        user,
        *encode("你呢"),
        sep,
        bot,
    ]
    with pytest.raises(Exception, match="roles user and assistant"):
        loaded.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)
