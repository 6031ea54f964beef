"""A tokenizer with chat's tokens and a file of conversations, made once."""

import json

import pytest

from megatron_sky.tokenizer.chat_template import find_template
from megatron_sky.tokenizer.chat_tokens import write_with_chat_tokens
from megatron_sky.tokenizer.kinds import load_tokenizer

GOOD = [
    {"instruction": f"请说 {number}。Say {number}, please", "output": f"好的，{number}! " * (1 + number % 5)}
    for number in range(60)
]
BAD = [
    {"messages": [{"role": "user", "content": "?"}]},
    {"messages": [{"role": "critic", "content": "?"}]},
    {"instruction": "?", "output": " "},
    {"instruction": "?", "output": "very long " * 200},
    {"instruction": "a [SEP] b", "output": "c"},
]


@pytest.fixture(scope="session")
def chat_tokenizer(text_corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "tokenizer.model"
    write_with_chat_tokens(text_corpus.tokenizer, ["[USER]", "[BOT]", "[SEP]"], path)
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def chat_tokenizer_path(chat_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat_path") / "tokenizer.model"
    path.write_bytes(chat_tokenizer.data)
    return path


@pytest.fixture(scope="session")
def skywork():
    return find_template("skywork")


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    path = tmp_path_factory.mktemp("conversations") / "chat.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in [*GOOD[:30], *BAD, *GOOD[30:]]]
    path.write_text("\n".join([*lines, "nonsense"]), encoding="utf-8")
    return path
