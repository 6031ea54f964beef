"""A file of prompts, and the file of their answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.errors import DataError
from megatron_sky.files import json_text, parse_json, replacing
from megatron_sky.generation.engine import Request
from megatron_sky.generation.run import Opened, answer_all, text_request
from megatron_sky.generation.sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """A line of a file: a text to continue, or the messages of a conversation."""

    line: int
    text: str | None
    messages: list[dict] | None

    @property
    def given(self) -> dict:
        return {"prompt": self.text} if self.messages is None else {"messages": self.messages}


def read_prompts(path: Path) -> list[Prompt]:
    """A text file's lines, or of a .jsonl file each line's `prompt`, `text` or `messages`; empty lines are none.

    Raises DataError that names the file and all lines that can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at what else ends a line within a text
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {error}\n  fix: give a UTF-8 file of prompts, one a line") from error
    if path.suffix not in (".jsonl", ".json"):
        prompts = [Prompt(number, line, None) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        prompts, wrong = [], []
        for number, line in enumerate(lines, 1):
            if line.strip():
                prompt = _parsed(number, line)
                prompts.append(prompt) if isinstance(prompt, Prompt) else wrong.append(f"line {number}: {prompt}")
        if wrong:
            more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise DataError(f"{path}: holds what is no prompt:\n  " + "\n  ".join(wrong[:10]) + more)
    if not prompts:
        raise DataError(f"{path}: holds no prompt\n  fix: write one a line")
    return prompts


def _parsed(number: int, line: str) -> Prompt | str:
    """The prompt in a line of JSON, or what is wrong with it."""
    try:
        content = parse_json(line.encode())
    except ValueError as error:
        return f"is no JSON: {error}"
    if not isinstance(content, dict):
        return "is no JSON object"
    if (messages := content.get("messages")) is not None:
        wrong = wrong_messages(messages)
        return wrong or Prompt(number, None, messages)
    text = content.get("prompt", content.get("text"))
    return Prompt(number, text, None) if isinstance(text, str) else "has no text in `prompt`, and no `messages`"


def wrong_messages(messages: object) -> str | None:
    """What is wrong with a conversation's messages: each has a `role` and a `content`, both texts; None: nothing."""
    if not isinstance(messages, list) or not messages:
        return "messages: must be a list of at least one message"
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            return f"messages[{number}]: must be an object with `role` and `content`"
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                return f"messages[{number}].{name}: must be a text"
    return None


def answer_file(opened: Opened, prompts: Sequence[Prompt], sampling: Sampling, out: Path, *, batch_size: int) -> None:
    """Writes a line of JSON for each prompt, in order: what was given, `completion`, `finish_reason`, `tokens`.

    The file is there when all are answered. Raises DataError naming the lines that leave no room in the context.
    """
    requests = _requests(opened, prompts, sampling)
    answers = dict(answer_all(opened.engine, requests, sampling, batch_size))
    with replacing(out) as file:
        for number, prompt in enumerate(prompts):
            answer = answers[number]
            told = {"completion": answer.text, "finish_reason": answer.ended, "tokens": answer.num_tokens}
            file.write((json_text(prompt.given | told) + "\n").encode("utf-8", "backslashreplace"))


def _requests(opened: Opened, prompts: Sequence[Prompt], sampling: Sampling) -> list[Request]:
    engine, requests, wrong = opened.engine, [], []
    for prompt in prompts:
        if prompt.messages is None:
            request = text_request(engine.coder, prompt.text or "", sampling, engine.context)
        else:
            ids = opened.encode_chat(prompt.messages)
            stop = (*sampling.stop, *opened.stop_of_turn)
            request = Request(ids, min(sampling.max_new_tokens, engine.context - len(ids)), stop=stop)
        requests.append(request)
        if request.limit < 1:
            wrong.append(f"line {prompt.line}: {len(request.prompt):,} tokens")
    if wrong:
        more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise DataError(
            f"prompts leave no token of the model's context length ({engine.context:,} tokens):\n  "
            + "\n  ".join(wrong[:10])
            + more
        )
    return requests


def write_conversation(path: Path, messages: Sequence[dict]) -> None:
    """A conversation as one line of JSON, `{"messages": [...]}`, as `data` and `generate --prompts` read it."""
    with replacing(path) as file:
        file.write((json.dumps({"messages": list(messages)}, ensure_ascii=False) + "\n").encode())
