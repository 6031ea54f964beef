"""The tokenizer's files: the same ids in transformers, and the chat template."""

import json
import logging
import shutil

import pytest

from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.tokenizer.check import check_tokenizer
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, load_tokenizer
from megatron_sky.tokenizer.sample_text import SAMPLES
from megatron_sky.tokenizer.to_huggingface import to_tokenizers, write
from tests.data.helpers import read_texts

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


MODELS = {
    "byte fallback": {"model_type": "bpe", "byte_fallback": True},
    "without a leading space": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "as SentencePiece trains by itself": {"model_type": "bpe"},
    "nothing normalised": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "unigram, unknown characters": {"model_type": "unigram"},
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_many_settings_give_the_same_ids(kind, text_corpus):
    import io

    from sentencepiece import SentencePieceTrainer

    texts = [text for domain in text_corpus.files["train"].values() for text in read_texts(domain)]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=700, minloglevel=2, num_threads=1, **MODELS[kind]
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), "t.model")
    library = to_tokenizers(tokenizer)
    for text in [*SAMPLES, *texts[:80], " ", "  a  b ", "\t\n", "12 345", "ﬁ é Ａ ①", "▁a"]:
        assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), text
    (same,) = [check for check in check_tokenizer(tokenizer, texts[:20], trials=5) if check.rule.startswith("Hugging")]
    assert same.holds and "not tried" not in same.seen


def test_a_kind_without_an_equal_is_said_not_to_be_tried(text_corpus):
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    texts = read_texts(text_corpus.files["train"]["code"])
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="char", vocab_size=60, minloglevel=2
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), "t.model")
    (same,) = [check for check in check_tokenizer(tokenizer, trials=5) if check.rule.startswith("Hugging")]
    assert same.seen == "not tried: only SentencePiece's BPE and unigram models are turned into one"


def test_chat_symbols_are_tokens_and_the_template_uses_them(hf, corpus, tmp_path):

    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString((corpus / "tokenizer.model").read_bytes())
    for symbol in ("[USER]", "[BOT]", "[SEP]"):
        proto.pieces.add(piece=symbol, score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    path = tmp_path / "chat.model"
    path.write_bytes(proto.SerializeToString())
    (tmp_path / "hf").mkdir()
    write(path, tmp_path / "hf", adds_begin=open_source(hf("tp2")).adds_begin)
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
    with pytest.raises(Exception, match="roles user, assistant and tool"):
        loaded.apply_chat_template([{"role": "critic", "content": ""}], tokenize=False)


def with_begin(folder):
    """As LLaMA's and Mistral's folders: the begin token goes before each text."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(content))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))


@pytest.mark.parametrize("kept", [("tokenizer.model", "tokenizer.json"), ("tokenizer.model",), ("tokenizer.json",)])
def test_a_begin_token_that_the_tokenizer_adds_stays_there_and_back(kept, hf, tmp_path):
    shutil.copytree(hf("tp2"), tmp_path / "hf")
    with_begin(tmp_path / "hf")
    for name in {"tokenizer.model", "tokenizer.json"} - set(kept):
        (tmp_path / "hf" / name).unlink()
    native = open_source(write_native(open_source(tmp_path / "hf"), tmp_path / "native").folder)
    assert native.adds_begin
    back = write_hf(native, tmp_path / "back").folder
    loaded = transformers.AutoTokenizer.from_pretrained(str(back))
    ids = loaded("The river", add_special_tokens=False)["input_ids"]
    assert loaded("The river")["input_ids"] == [1, *ids]
    assert json.loads((back / "tokenizer_config.json").read_text())["add_bos_token"] is True


def test_of_a_model_trained_here_none_is_added(native, hf, tmp_path):
    """Training puts nothing before a text, whatever the settings beside its tokenizer.json say."""
    shutil.copytree(hf("tp2"), tmp_path / "hf")
    with_begin(tmp_path / "hf")
    source = open_source(native("tp2"), tokenizer=tmp_path / "hf" / "tokenizer.json")
    assert not source.adds_begin
    folder = write_hf(source, tmp_path / "out").folder
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert loaded("The river")["input_ids"] == load_tokenizer(folder).encode("The river")


@pytest.fixture
def with_chat(hf, tmp_path):
    """A folder whose two chat tokens stand in tokenizer.json and added_tokens.json, and not in tokenizer.model."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "chat"
    shutil.copytree(hf("tp2"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(2, 32)])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 702}))
    symbols = {"<|im_start|>": 700, "<|im_end|>": 701}
    (folder / "added_tokens.json").write_text(json.dumps(symbols))
    library = load_tokenizer(folder / "tokenizer.json").library
    library.add_special_tokens(list(symbols))
    library.save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_that_only_the_tokenizer_json_holds_are_kept(with_chat, tmp_path):
    native = open_source(write_native(open_source(with_chat), tmp_path / "native").folder)
    assert native.tokenizer.name == "tokenizer.json" and native.model.vocab_size == 702
    ids = load_tokenizer(native.tokenizer).encode("<|im_start|>a<|im_end|>", parse_special=True)
    assert ids[0] == 700 and ids[-1] == 701
    back = write_hf(native, tmp_path / "back").folder
    loaded = transformers.AutoTokenizer.from_pretrained(str(back))
    assert loaded("<|im_start|>a<|im_end|>")["input_ids"] == ids and len(loaded) == 702


def test_added_tokens_that_no_tokenizer_file_holds_are_told(with_chat, tmp_path, caplog):
    (with_chat / "tokenizer.json").unlink()
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        done = write_native(open_source(with_chat), tmp_path / "native")
    assert "lacks 2 tokens that the settings beside it add" in caplog.text and "save_pretrained" in caplog.text
    assert open_source(done.folder).model.vocab_size == 702  # the files beside say so here too
