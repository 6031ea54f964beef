"""A conversation in the terminal: history, a system prompt, commands."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_sky.errors import ConfigError, Problem, SkyError
from megatron_sky.generation.engine import CANCELLED, LENGTH, Answer, Request
from megatron_sky.generation.prompts import write_conversation
from megatron_sky.generation.run import Opened
from megatron_sky.generation.sampling import NAMES, Sampling

HELP = """\
/help                 this list
/reset                forget the conversation; the system prompt stays
/system [TEXT]        set the system prompt and begin anew; without a text: none
/undo                 take back the last question and its answer
/again                answer the last question once more
/history              show the conversation
/set [NAME VALUE]     show the sampling options, or set one: /set temperature 0.7
/save FILE            write the conversation as a line of JSONL
/quit                 leave (as Ctrl-D); Ctrl-C ends an answer
A line that ends with \\ goes on in the next one."""

Write = Callable[[str], None]


@dataclass
class Chat:
    """A conversation with a model.

    `write` takes what is shown, answers piece by piece. What a question leaves out of the context is the oldest turns.
    """

    opened: Opened
    sampling: Sampling
    write: Write
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation, the system prompt first."""
        return ([] if self.system is None else [{"role": "system", "content": self.system}]) + self.turns

    def ask(self, question: str) -> Answer:
        """Answers a question, and keeps both. Raises DataError where the question alone is too long for the context."""
        self.turns.append({"role": "user", "content": question})
        try:
            answer = self._answer()
        except BaseException:
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": answer.text.strip()})
        return answer

    def _answer(self) -> Answer:
        opened, context = self.opened, self.opened.engine.context
        ids, left_out = self._fitting(context)
        if left_out:
            self.write(f"[the oldest {left_out} messages no longer fit into the context of {context:,} tokens]\n")
        limit = min(self.sampling.max_new_tokens, context - len(ids))
        stop = (*self.sampling.stop, *opened.stop_of_turn)
        self.is_interrupted = False
        request = Request(ids, limit, stop=stop, on_text=self.write, is_cancelled=lambda: self.is_interrupted)
        with self._ended_by_interrupts():
            (answer,) = opened.engine.generate([request], self.sampling)
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)  # asked again, another answer
        if answer.ended == LENGTH:
            self.write(f" [cut off after {answer.num_tokens} tokens]")
        if answer.ended == CANCELLED:
            self.write(" [interrupted]")
        self.write("\n")
        return answer

    @contextlib.contextmanager
    def _ended_by_interrupts(self) -> Iterator[None]:
        """Inside, Ctrl-C ends the answer with the token that is being made; what there is of it is kept."""

        def end(number: int, frame: object) -> None:
            self.is_interrupted = True

        before = signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _fitting(self, context: int) -> tuple[list[int], int]:
        """(the prompt's ids, how many of the oldest messages it leaves out): a quarter of the context, or what may be
        answered, stays free."""
        room = context - max(1, min(self.sampling.max_new_tokens, context // 4))
        begin = len(self.messages) - len(self.turns)
        for left_out in range(0, len(self.turns), 2):
            kept = self.messages[:begin] + self.turns[left_out:]
            ids = self.opened.encode_chat(kept)
            if len(ids) <= room:
                return ids, left_out
        if len(ids) < context:
            return ids, left_out
        rule = f"is {len(ids):,} tokens of the context's {context:,}"
        raise ConfigError(Problem("the question", rule, "ask for less"))

    def obey(self, line: str) -> bool:
        """Runs a command; whether the conversation goes on."""
        word, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.write(HELP + "\n"),
            "/reset": lambda _: self._reset("the conversation is forgotten"),
            "/system": self._set_system,
            "/undo": lambda _: self._undo(),
            "/again": lambda _: self._again(),
            "/history": lambda _: self._show_history(),
            "/set": self._set,
            "/save": self._save,
        }
        if word in ("/quit", "/exit"):
            return False
        if word not in commands:
            self.write(f"{word}: is no command; /help lists them\n")
        else:
            commands[word](rest.strip())
        return True

    def _reset(self, words: str) -> None:
        self.turns.clear()
        self.write(f"[{words}]\n")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._reset("a new conversation, " + ("with this system prompt" if text else "without a system prompt"))

    def _undo(self) -> None:
        self.write("[taken back]\n" if self.turns else "[there is nothing to take back]\n")
        del self.turns[-2:]

    def _again(self) -> None:
        if not self.turns:
            self.write("[there is no question yet]\n")
            return
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        self.ask(question)

    def _show_history(self) -> None:
        for message in self.messages:
            self.write(f"{message['role']}: {message['content']}\n")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not text:
            self.write("".join(f"{name} = {getattr(self.sampling, name)}\n" for name in NAMES))
        elif name not in NAMES:
            self.write(f"{name}: is no option; they are {', '.join(NAMES)}\n")
        else:
            given: dict[str, Any] = {name: _read_value(name, value)}  # each option has a type of its own
            self.sampling = replace(self.sampling, **given)
            self.write(f"{name} = {getattr(self.sampling, name)}\n")

    def _save(self, text: str) -> None:
        if not text:
            self.write("/save needs a file's name\n")
            return
        write_conversation(Path(text).expanduser(), self.messages)
        self.write(f"[{len(self.messages)} messages written to {text}]\n")


def _read_value(name: str, value: str) -> object:
    """A sampling option as people write it. Raises ConfigError."""
    if name == "stop":
        return tuple(value.split("|")) if value else ()
    if value in ("", "none"):
        return None if name in ("top_k", "top_p", "min_p") else getattr(Sampling, name)
    kind = float if name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty") else int
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(Problem(f"/set {name}", "must be a number", value=value)) from None


def converse(chat: Chat, read: Callable[[str], str]) -> None:
    """Reads lines with `read(prompt)` until its end (EOFError) or /quit. What goes wrong is said, and it goes on."""
    while True:
        try:
            line = _whole_line(read)
            if line.startswith("/"):
                if not chat.obey(line):
                    return
            elif line.strip():
                chat.ask(line)
        except EOFError:
            chat.write("\n")
            return
        except KeyboardInterrupt:
            chat.write("\n[/quit or Ctrl-D leaves]\n")
        except (SkyError, OSError) as error:
            chat.write(f"{error}\n")


def _whole_line(read: Callable[[str], str]) -> str:
    line = read("> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read(". ")
    return line
