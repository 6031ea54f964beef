"""The verbs `generate`, `chat` and `serve`, as a user calls them, with a small model in the checkpoint's place."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from typer.testing import CliRunner

from megatron_sky.cli.main import app
from megatron_sky.errors import ConfigError
from megatron_sky.generation import run as generation
from megatron_sky.generation.run import Opened
from megatron_sky.serve import run as serving
from megatron_sky.tokenizer.chat_template import find_template
from tests.generation.models import engine


@pytest.fixture(scope="module")
def llama():
    return engine(context=200)


@pytest.fixture
def sky(llama, monkeypatch):
    opened = Opened(SimpleNamespace(path="folder", name="small"), llama, find_template("skywork"))
    monkeypatch.setattr(generation, "open_engine", lambda *_, **__: opened)
    monkeypatch.setattr("megatron_sky.cli.generate.log_to_screen", lambda: None)

    def call(*words: object, given: str = ""):
        return CliRunner().invoke(app, [str(word) for word in words], input=given)

    return call


def test_chat_reads_lines_and_saves(sky, tmp_path):
    out = tmp_path / "talk.jsonl"
    lines = f"hi\n/set max_new_tokens 3\nwhy?\n/save {out}\n/quit\n"
    done = sky("chat", "folder", "--system", "Be brief.", "--max-new-tokens", 4, "--seed", 3, given=lines)
    assert done.exit_code == 0, done.output
    assert "small, chat template skywork; /help lists the commands" in done.output
    messages = json.loads(out.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_file_of_prompts_is_answered_whole(sky, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')
    done = sky("generate", "folder", "--prompts", prompts, "--out", out, "--max-tokens", 3, "--temperature", 1)
    assert done.exit_code == 0 and "2 prompts answered" in done.output
    assert len(out.read_text(encoding="utf-8").split("\n")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no prompt"),
        (("a", "--prompts", "p", "--out", "o"), "there are prompts on the command line too"),
        (("--prompts", "p"), "goes with --prompts"),
        (("a", "--top-p", "2"), "--top-p = 2.0: must be above 0"),
    ],
)
def test_what_does_not_go_together(sky, words, message):
    done = sky("generate", "folder", *words)
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)


def test_serve_has_its_limits(sky, monkeypatch):
    calls: list[tuple] = []
    monkeypatch.setattr(serving, "serve", lambda *given, **named: calls.append((given, named)))
    assert sky("serve", "folder", "--max-body", "1M", "--timeout", 9, "--port", 8123).exit_code == 0
    ((given, named),) = calls
    assert given == (Path("folder"),) and (named["host"], named["port"]) == ("127.0.0.1", 8123)
    limits = named["limits"]
    assert (limits.max_body, limits.timeout, limits.max_requests, limits.api_key) == (1_000_000, 9.0, 256, None)
