"""An object of instruction data as the messages of one conversation, or the reason why it is none.

Three forms are known by their keys: `messages` (OpenAI's: role, content, tool calls), `conversations` (ShareGPT's:
from, value) and `instruction`, `input`, `output` (Alpaca's; `system` and a `history` of pairs may stand beside them).
A list is taken for messages. What a tool is called with and what it returns stay text, as JSON where they were objects.
"""

import json
from collections.abc import Mapping, Sequence

REASONS = {
    "not_json": "it is no JSON, or nests too deeply",
    "too_long_line": "the line or row is longer than the limit",
    "no_conversation": "it has none of messages, conversations and instruction",
    "no_pair": "it has no chosen and rejected answer",
    "no_question": "there is no question that both answers follow",
    "same_answers": "the chosen and the rejected answer are the same",
    "no_messages": "it holds no message",
    "not_text": "a message's text is no string",
    "unknown_role": "a message's role is none of system, user, assistant and tool, nor another name of one",
    "misplaced_system": "a system message stands after the first message",
    "ends_with_user": "the last message is not the assistant's",
    "empty_answer": "the assistant says nothing in one of its messages",
    "nul": "a text holds a NUL character",
    "invalid_utf8": "a text is no valid Unicode",
    "token_in_text": "a message spells one of the tokens that keep messages apart",
    "template_error": "the chat template fails or refuses it",
    "answer_splits_token": "an answer begins or ends within a token",
    "no_answer_left": "no token of an answer is left in it, so that nothing would be learnt",
    "too_long": "it has more tokens than a row",
}
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}

Message = dict[str, str]


class Unusable(Exception):
    """A conversation that is left out: `reason` is a key of REASONS, `detail` what stands there."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def messages_of(record: object) -> list[Message]:
    """The messages (`role`, `content`) of one object. Raises Unusable."""
    messages = _messages(record)
    if not messages:
        raise Unusable("no_messages")
    for number, message in enumerate(messages):
        _check_text(message["content"])
        if message["role"] == "system" and number:
            raise Unusable("misplaced_system", f"message {number + 1}")
        if message["role"] == "assistant" and not message["content"].strip():
            raise Unusable("empty_answer", f"message {number + 1}")
    if messages[-1]["role"] != "assistant":
        raise Unusable("ends_with_user", f"the last of {len(messages)} messages is of {messages[-1]['role']}")
    return messages


def _messages(record: object) -> list[Message]:
    if isinstance(record, Mapping):
        for key in ("messages", "conversations", "conversation"):
            if record.get(key) is not None:
                opening = _text_or_none(record.get("system"))
                return opened(opening, listed(record[key]))
        if record.get("instruction") is not None:
            return _of_instruction(record)
    elif isinstance(record, list):
        return listed(record)
    raise Unusable("no_conversation", _begin_of(record))


def opened(system: str | None, messages: list[Message]) -> list[Message]:
    """The messages with a system prompt that stands beside them."""
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def listed(given: object) -> list[Message]:
    """Messages under one name each, without the rules for a whole conversation. Raises Unusable."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise Unusable("not_text", f"messages are a list, not {type(given).__name__}")
    return [_message(entry, number) for number, entry in enumerate(given, 1)]


def _message(given: object, number: int) -> Message:
    if not isinstance(given, Mapping):
        raise Unusable("not_text", f"message {number} is {type(given).__name__}")
    name = given.get("role", given.get("from"))
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Unusable("unknown_role", f"message {number} is of {name!r}")
    content = given.get("content", given.get("value"))
    if isinstance(content, list):
        content = _joined(content, number)
    calls = given.get("tool_calls") or given.get("function_call")
    if calls:
        text = json.dumps(calls, ensure_ascii=False)
        content = f"{content}\n{text}" if content else text
    if role == "tool" and isinstance(content, Mapping):
        content = json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise Unusable("not_text", f"message {number} holds {type(content).__name__}")
    return {"role": role, "content": content}


def _joined(parts: list, number: int) -> str:
    """The text of a message in parts, as OpenAI's may be; an image is none."""
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    held = [text for text in texts if isinstance(text, str)]
    if len(held) < len(texts):
        raise Unusable("not_text", f"message {number} has a part that is no text")
    return "".join(held)


def _of_instruction(record: Mapping) -> list[Message]:
    question = _text_or_none(record["instruction"])
    if further := _text_or_none(record.get("input")):
        question = f"{question}\n{further}" if question else further
    answer = record.get("output", record.get("response"))
    if not isinstance(answer, str):
        raise Unusable("not_text" if answer is not None else "empty_answer", "output")
    messages = []
    for number, pair in enumerate(record.get("history") or (), 1):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise Unusable("not_text", f"history holds pairs of texts; number {number} is none")
        messages += [_message({"role": role, "content": text}, number) for role, text in zip(_TURN, pair, strict=True)]
    messages += [{"role": "user", "content": question or ""}, {"role": "assistant", "content": answer}]
    return opened(_text_or_none(record.get("system")), messages)


_TURN = ("user", "assistant")


def _text_or_none(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise Unusable("not_text", f"{type(value).__name__} where a text is due")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise Unusable("nul")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable("invalid_utf8") from None


def _begin_of(record: object) -> str:
    keys = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
    return keys[:200]
