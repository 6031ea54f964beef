"""Texts continued in batches by transformers' own generation, with its key/value cache.

    engine.generate(requests, sampling)   # one batch, one answer a request

Prompts of a batch are padded on the left. Each row ends for itself: at an end token, at one of its stop texts, at its
limit, or when nobody wants it any more; the batch ends with its last row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from megatron_sky.generation.sampling import Sampling
from megatron_sky.generation.texts import TextStream, cut_at_stop
from megatron_sky.tokenizer.coder import TextCoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


def _nobody(text: str) -> None:
    """Takes text that nobody reads as it comes."""


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
        prompt: its token ids, at least one.
        limit: new tokens, at most; `prompt` and they fit into the context.
        before: the tokens behind which the new text is read: those of a text that it continues, none for an answer.
        stop: texts that end it and are no part of it.
        on_text: gets the new text piece by piece, in the thread that generates.
        is_cancelled: asked after each token.
    """

    prompt: Sequence[int]
    limit: int
    before: Sequence[int] = ()
    stop: tuple[str, ...] = ()
    on_text: Callable[[str], None] = _nobody
    is_cancelled: Callable[[], bool] = lambda: False


@dataclass
class Answer:
    """The new text, how many tokens it took (the end token too), and why it ended: STOP, LENGTH or CANCELLED."""

    text: str
    num_tokens: int
    ended: str


@dataclass
class Engine:
    """A model of transformers with its tokenizer. Not for two threads at once.

    `context`: tokens of prompt and answer together. `ends`: ids that end a text.
    """

    model: "PreTrainedModel"
    coder: TextCoder
    context: int
    ends: frozenset[int]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """The answers to a batch, see `plan_batches` for what fits into one.

        With a beam search `on_text` gets a text at its end only.
        """
        from transformers import GenerationConfig, StoppingCriteriaList

        if sampling.samples:
            torch.manual_seed(sampling.seed)
        longest = max(len(request.prompt) for request in requests)
        tokens, mask = self._padded(requests, longest)
        rows = (_Beams if sampling.num_beams > 1 else _Rows)(requests, longest, self.coder, self.ends)
        settings = GenerationConfig(
            **sampling.to_transformers(),
            max_new_tokens=max(request.limit for request in requests),
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self._pad_id,
            suppress_tokens=list(range(self.coder.vocab_size, self.model.config.vocab_size)) or None,
            use_cache=True,
        )
        with torch.inference_mode():
            whole = self.model.generate(  # type: ignore[operator]  # a mixin's, unknown to torch's types
                tokens, attention_mask=mask, generation_config=settings, stopping_criteria=StoppingCriteriaList([rows])
            )
        return rows.answers(whole)

    @property
    def _pad_id(self) -> int:
        return min(self.ends, default=0)

    def _padded(self, requests: Sequence[Request], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.full((len(requests), longest), self._pad_id)
        mask = torch.zeros_like(tokens)
        for row, request in enumerate(requests):
            tokens[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, longest - len(request.prompt) :] = 1
        return tokens.to(self.model.device), mask.to(self.model.device)


class _Rows:
    """A stopping criterion of transformers: reads each row's new token, and says which rows have ended."""

    def __init__(self, requests: Sequence[Request], longest: int, coder: TextCoder, ends: frozenset[int]):
        self._requests, self._ends = requests, ends
        self._streams = [TextStream(coder.decode, request.before, request.stop) for request in requests]
        self._counts = [0] * len(requests)
        self._ended: list[str | None] = [None] * len(requests)

    def __call__(self, tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        for row, token in enumerate(tokens[:, -1].tolist()):
            if self._ended[row] is None:
                self._ended[row] = self._read(row, token)
        return torch.tensor([ended is not None for ended in self._ended], device=tokens.device)

    def _read(self, row: int, token: int) -> str | None:
        request, stream = self._requests[row], self._streams[row]
        self._counts[row] += 1
        if token not in self._ends and (text := stream.push(token)):
            request.on_text(text)
        ended = STOP if token in self._ends or stream.stopped else None
        ended = ended or (LENGTH if self._counts[row] >= request.limit else None)
        ended = ended or (CANCELLED if request.is_cancelled() else None)
        if ended and (text := stream.finish()):
            request.on_text(text)
        return STOP if stream.stopped else ended

    def answers(self, whole: torch.Tensor) -> list[Answer]:
        return [
            Answer(stream.text, count, ended or LENGTH)
            for stream, count, ended in zip(self._streams, self._counts, self._ended, strict=True)
        ]


class _Beams:
    """The same of a beam search, whose rows change places: each row's new text is read anew."""

    def __init__(self, requests: Sequence[Request], longest: int, coder: TextCoder, ends: frozenset[int]):
        self._requests, self._longest, self._coder, self._ends = requests, longest, coder, ends

    def __call__(self, tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        beams = len(tokens) // len(self._requests)
        new = tokens[:, self._longest :].tolist()
        ended = [self._has_ended(row, self._requests[number // beams]) for number, row in enumerate(new)]
        return torch.tensor(ended, device=tokens.device)

    def _has_ended(self, new: list[int], request: Request) -> bool:
        stopped = request.stop and cut_at_stop(self._text(new, request), request.stop)[1]
        return len(new) >= request.limit or bool(stopped) or request.is_cancelled()

    def _text(self, new: list[int], request: Request) -> str:
        before = list(request.before[-8:])
        return self._coder.decode([*before, *new])[len(self._coder.decode(before)) :]

    def answers(self, whole: torch.Tensor) -> list[Answer]:
        answers = []
        for request, row in zip(self._requests, whole[:, self._longest :].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in self._ends), None)
            new = row[:end][: request.limit]
            text, stopped = cut_at_stop(self._text(new, request), request.stop)
            cancelled = CANCELLED if request.is_cancelled() else LENGTH
            ended = STOP if stopped or (end is not None and end < request.limit) else cancelled
            request.on_text(text)
            answers.append(Answer(text, len(new) + (ended == STOP and not stopped), ended))
        return answers


def plan_batches(requests: Sequence[Request], *, context: int, batch_size: int) -> list[list[int]]:
    """The numbers of the requests of each batch: prompts of like length, whose longest leaves room for every limit.

    A row that has ended goes on as padding until its batch ends, and must not leave the context meanwhile.
    """
    order = sorted(range(len(requests)), key=lambda number: -len(requests[number].prompt))
    batches: list[list[int]] = []
    room = -1
    for number in order:
        request = requests[number]
        if not batches or len(batches[-1]) == batch_size or request.limit > room:
            batches.append([])
            room = context - len(request.prompt)
        batches[-1].append(number)
    return batches
