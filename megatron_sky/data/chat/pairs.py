"""An object of preference data as two answers to one question, each a sample of its own.

Known are `chosen` and `rejected` as texts or messages, and the question as `prompt` (a text or messages), `instruction`
and `input`, `messages` or `conversations`; or as what the conversations `chosen` and `rejected` begin with alike.
What is learnt from is what follows the question: answers within it are context.
"""

from collections.abc import Mapping

import numpy as np

from megatron_sky.data.chat.conversations import Message, Unusable, listed, messages_of, opened
from megatron_sky.data.chat.samples import Sample, SampleMaker
from megatron_sky.data.tokens.mask import ANSWER, REJECTED

ANSWERS = ("chosen", "rejected")


class PairMaker:
    """Turns objects of preference data into pairs of samples: one Sample, whose `first` is what the chosen one takes.

    Args:
        make: makes the sample of a conversation; of one whose end may be cut, at most half a row.
        row_length: tokens of both together, at most.
    """

    def __init__(self, make: SampleMaker, *, row_length: int):
        self._make, self._row_length = make, row_length

    def __call__(self, record: object) -> Sample:
        """The pair of one object. Raises Unusable."""
        question, chosen, rejected = conversations_of(record)
        preferred, other = (self._make.after(question, answer) for answer in (chosen, rejected))
        if len(preferred.tokens) == len(other.tokens) and (preferred.tokens == other.tokens).all():
            raise Unusable("same_answers", "they are the same tokens")
        size = len(preferred.tokens) + len(other.tokens)
        if size > self._row_length:
            raise Unusable("too_long", f"{size:,} tokens of both answers, a row has {self._row_length:,}")
        mask = np.concatenate([preferred.mask, np.where(other.mask == ANSWER, REJECTED, other.mask)])
        tokens = np.concatenate([preferred.tokens, other.tokens])
        return Sample(tokens, mask.astype(np.uint8), preferred.cut + other.cut, first=len(preferred.tokens))


def conversations_of(record: object) -> tuple[int, list[Message], list[Message]]:
    """(messages of the question, the conversation with the chosen answer, that with the rejected). Raises Unusable."""
    if not isinstance(record, Mapping) or any(record.get(name) is None for name in ANSWERS):
        raise Unusable("no_pair", ", ".join(map(str, record))[:200] if isinstance(record, Mapping) else "")
    chosen, rejected = (_answer(record[name]) for name in ANSWERS)
    before = _question(record)
    if before and chosen[: len(before)] == before and rejected[: len(before)] == before:
        before = []  # the answers are whole conversations that begin with it
    whole = [messages_of([*before, *answer]) for answer in (chosen, rejected)]
    if whole[0] == whole[1]:
        raise Unusable("same_answers")
    couples = enumerate(zip(*whole, strict=False))
    alike = next((number for number, (one, other) in couples if one != other), min(map(len, whole)))
    question = max(alike, len(before))
    if not question or any(conversation[question - 1]["role"] == "assistant" for conversation in whole):
        raise Unusable("no_question", f"the answers differ from message {alike + 1} on")
    return question, whole[0], whole[1]


def _answer(given: object) -> list[Message]:
    """A text is the assistant's; a message or messages are as they are."""
    if isinstance(given, str):
        return [{"role": "assistant", "content": given}]
    return listed([given] if isinstance(given, Mapping) else given)


def _question(record: Mapping) -> list[Message]:
    """What stands before both answers; empty where they hold it themselves."""
    given: object = record.get("prompt")
    if given is None:
        given = next((record[name] for name in ("messages", "conversations") if record.get(name) is not None), None)
    if given is None:
        texts = [record.get(name) for name in ("question", "instruction", "input")]
        given = "\n".join(text for text in texts if isinstance(text, str) and text) or None
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else listed(given or [])
    system = record.get("system")
    return opened(system, messages) if messages and isinstance(system, str) else messages
