"""A conversation as token ids, each of them context or answer.

The text is tokenized whole, as a tool that applies the template does; where answers begin and end among its tokens is
found by tokenizing what stands before, which is what the model will be given when it is to answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.data.chat.conversations import Message, Unusable, messages_of
from megatron_sky.data.tokens.mask import ANSWER, CONTEXT
from megatron_sky.errors import DataError
from megatron_sky.tokenizer.chat_template import BUILT_IN, SYMBOLS, ChatTemplate, find_template, template_beside
from megatron_sky.tokenizer.coder import special_of
from megatron_sky.tokenizer.kinds import Tokenizer, any_of


@dataclass(frozen=True)
class Sample:
    """The tokens of a conversation and, for each, CONTEXT or ANSWER. `cut`: tokens that were left out at its end.

    Of a pair (`pairs`) the tokens of both conversations, of which the first has `first`.
    """

    tokens: np.ndarray
    mask: np.ndarray
    cut: int = 0
    first: int | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each of its documents."""
        size = len(self.tokens)
        return (size,) if self.first is None else (self.first, size - self.first)


class SampleMaker:
    """Turns objects of instruction data into samples of at most `row_length` tokens.

    Args:
        cuts_long: a longer conversation loses its end, instead of being left out.

    Raises:
        DataError: the tokenizer lacks a token that the template needs.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, row_length: int, cuts_long: bool = False):
        self._tokenizer, self._template = tokenizer, template
        self._row_length, self._cuts_long = row_length, cuts_long
        self._special = special_of(tokenizer)
        known = {**tokenizer.control_tokens, **tokenizer.reserved_tokens}
        if missing := [symbol for symbol in SYMBOLS.get(template.name, ()) if symbol not in known]:
            raise DataError(
                f"chat template {template.name}: the tokenizer {tokenizer.name} has no token {', '.join(missing)}\n"
                f"  fix: `megatron-sky tokenizer chat {tokenizer.name} --template {template.name} --out NEW` puts them "
                "into its reserved ones, or behind the last"
            )
        apart = [text for text in tokenizer.reserved_tokens if text.strip() and text in template.text]
        self._apart = any_of([*tokenizer.control_tokens, *apart])

    def __call__(self, record: object) -> Sample:
        """The sample of one object. Raises Unusable."""
        return self.after(0, messages_of(record))

    def after(self, question: int, messages: Sequence[Message]) -> Sample:
        """The sample of a conversation, where only what the assistant says after its first `question` messages counts.

        Raises Unusable.
        """
        self._refuse_tokens_in(messages)
        try:
            rendered = self._template.render(messages, special=self._special)
        except DataError as error:
            raise Unusable("template_error", str(error)) from error
        ids = self._tokenizer.encode(rendered.text, parse_special=True)
        mask = np.full(len(ids), CONTEXT, np.uint8)
        for begin, end in rendered.answers[sum(message["role"] == "assistant" for message in messages[:question]) :]:
            mask[self._tokens_before(rendered.text, begin, ids) : self._tokens_before(rendered.text, end, ids)] = ANSWER
        return self._fitted(np.array(ids, np.int64), mask)

    def _refuse_tokens_in(self, messages: Sequence[Message]) -> None:
        for number, message in enumerate(messages, 1):
            if self._apart is not None and (spelt := self._apart.search(message["content"])):
                raise Unusable("token_in_text", f"message {number} holds {spelt.group()!r}")

    def _tokens_before(self, text: str, at: int, ids: list[int]) -> int:
        before = ids if at == len(text) else self._tokenizer.encode(text[:at], parse_special=True)
        if ids[: len(before)] != before:
            raise Unusable("answer_splits_token", repr(text[max(0, at - 10) : at + 10]))
        return len(before)

    def _fitted(self, ids: np.ndarray, mask: np.ndarray) -> Sample:
        cut = max(0, len(ids) - self._row_length)
        if cut and not self._cuts_long:
            raise Unusable("too_long", f"{len(ids):,} tokens, a row has {self._row_length:,}")
        ids, mask = ids[: len(ids) - cut], mask[: len(mask) - cut]
        mask[:1] = CONTEXT  # which follows no token, so that it is nobody's label
        if not (mask == ANSWER).any():
            raise Unusable("no_answer_left", f"{cut:,} tokens were cut" if cut else "the template marks no answer")
        return Sample(ids, mask, cut)


def choose_template(given: str | None, tokenizer: Path) -> ChatTemplate:
    """The template of that name or file; None: the one that lies beside the tokenizer. Raises DataError."""
    if given is not None:
        return find_template(given)
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    beside = template_beside(folder)
    if beside is None:
        raise DataError(
            f"{folder}: the tokenizer has no chat template of its own\n"
            f"  fix: give --template, one of {', '.join(BUILT_IN)} or a Jinja file"
        )
    return beside
