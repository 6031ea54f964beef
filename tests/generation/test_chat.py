"""The conversation in the terminal: what is asked, kept, cut and commanded; and files of prompts."""

import json
import signal
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from megatron_sky.errors import DataError
from megatron_sky.generation.chat import HELP, Chat, converse
from megatron_sky.generation.prompts import answer_file, read_prompts
from megatron_sky.generation.run import Opened
from megatron_sky.generation.sampling import Sampling
from megatron_sky.tokenizer.chat_template import ChatTemplate, find_template
from tests.generation.models import engine

SHORT = ChatTemplate("short", "{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}")


@pytest.fixture(scope="module")
def llama():
    return engine()


def opened(llama, template=SHORT) -> Opened:
    return Opened(SimpleNamespace(path="folder", name="n"), llama, template)


@pytest.fixture
def talk(llama):
    shown: list[str] = []
    return Chat(opened(llama), Sampling(5), shown.append), shown


def say(chat: Chat, *lines: str) -> None:
    given = iter(lines)

    def read(prompt: str) -> str:
        line = next(given, None)
        if line is None:
            raise EOFError
        return line

    converse(chat, read)


def test_a_conversation_is_kept_with_its_system_prompt(talk):
    chat, shown = talk
    say(chat, "/system be", "hi", "", "a\\", "b", "/history", "/quit", "never")
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[0]["content"] == "be" and chat.messages[3]["content"] == "a\nb"
    assert "user: hi\n" in shown


def test_commands(talk, tmp_path):
    chat, shown = talk
    out = tmp_path / "talk.jsonl"
    say(chat, "/help", "hi", f"/save {out}", "/again", "/undo", "/undo", "/again", "/nonsense", "/save", "/set")
    text = "".join(shown)
    assert HELP in text and "/nonsense: is no command" in text and "needs a file's name" in text
    assert "nothing to take back" in text and "there is no question yet" in text and "temperature = 0.0\n" in text
    messages = json.loads(out.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] and not chat.turns
    say(chat, "/set temperature 0.5", "/set stop a|b", "/set top_k x", "/set nothing 1", "/set top_p 7", "hi", "/reset")
    assert chat.sampling.temperature == 0.5 and chat.sampling.stop == ("a", "b") and not chat.turns
    text = "".join(shown)
    assert "must be a number" in text and "nothing: is no option" in text and "at most 1" in text


def test_what_no_longer_fits_is_left_out_and_told(talk):
    chat, shown = talk
    say(chat, *["x" * 20] * 4)
    assert len(chat.turns) == 8
    assert any("no longer fit into the context of 64 tokens" in text for text in shown)
    say(chat, "y" * 80)
    assert "the question: is 82 tokens" in shown[-2] and len(chat.turns) == 8, "what was not answered is not kept"


def test_an_interrupt_ends_the_answer_and_keeps_what_there_is(llama):
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)

    chat = Chat(opened(llama), Sampling(30), write)
    answer = chat.ask("hi")
    assert answer.num_tokens < 30 and chat.turns[-1]["role"] == "assistant" and " [interrupted]" in shown
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_folder_without_a_template(llama):
    with pytest.raises(DataError, match="has no chat template\n  fix: --chat-template skywork"):
        opened(llama, None).encode_chat([{"role": "user", "content": ""}])
    assert opened(llama, find_template("skywork")).stop_of_turn == ("[SEP]",)


def test_a_file_of_prompts(llama, tmp_path):
    lines = [{"prompt": "hello"}, {"messages": [{"role": "user", "content": "hi"}]}, {"text": "a"}]
    path = tmp_path / "p.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    out = tmp_path / "out.jsonl"
    answer_file(opened(llama), read_prompts(path), Sampling(4), out, batch_size=2)
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line.get("prompt") for line in written] == ["hello", None, "a"] and written[1]["messages"][0]["content"]
    assert all(line["tokens"] <= 4 and line["finish_reason"] in ("stop", "length") for line in written)
    (tmp_path / "p.txt").write_text("one\n\ntwo\u2028three\n", encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.txt")] == ["one", "two\u2028three"]


def test_lines_that_are_no_prompts_are_told_together(llama, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": 3}\n[]\n{"messages": []}\n{"messages": [{"role": "user"}]}\nno\n{"prompt": "a"}\n')
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    assert [f"line {number}:" in str(caught.value) for number in range(1, 7)] == [True] * 5 + [False]
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(DataError, match="can't be read"):
        read_prompts(tmp_path / "none")
    path.write_text(json.dumps({"prompt": "a" * 70}) + '\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"line 1: 70 tokens"):
        answer_file(opened(llama), read_prompts(path), Sampling(4), tmp_path / "out", batch_size=2)
    assert not (tmp_path / "out").exists()
