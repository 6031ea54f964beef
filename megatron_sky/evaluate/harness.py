"""EleutherAI's lm-eval harness on a model of ours: its three requests, batched by length.

Every process answers every request and shares the batches with the others, so the harness sees one model.
"""

import functools
from dataclasses import dataclass

import numpy as np
from lm_eval.api.model import TemplateLM

from megatron_sky.errors import CheckpointError, ConfigError, DataError, Problem
from megatron_sky.evaluate.scoring import Progress, score_spans
from megatron_sky.evaluate.windows import Span, cut_spans, plan_batches
from megatron_sky.inference.continuation import Request, continue_texts
from megatron_sky.inference.model import Model
from megatron_sky.tokenizer.coder import TextCoder

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's names, strongest first
_DEFAULT_LIMIT = 256  # lm-eval's own, where the context allows


@dataclass(frozen=True)
class Generation:
    """How a text is continued: at most `limit` tokens, up to one of the texts `until`; temperature 0 is greedy."""

    limit: int
    until: tuple[str, ...]
    temperature: float


class HarnessModel(TemplateLM):
    """lm-eval's view of a model. A text without a context is predicted after the token that begins a document."""

    def __init__(self, model: Model, coder: TextCoder, *, context: int, batch_tokens: int, gather, seed: int = 1234):
        super().__init__()
        self._model, self._coder, self._gather = model, coder, gather
        self._batch_tokens, self._seed = batch_tokens, seed
        self.max_length = context

    @property
    def eot_token_id(self) -> int | None:
        return self._coder.eod_id

    @property
    def prefix_token_id(self) -> int:
        begin = self._coder.begin_id("auto")
        if begin is None:
            raise DataError(f"tokenizer {self._coder.name}: has neither a begin nor an end token to predict after")
        return begin

    @property
    def tokenizer_name(self) -> str:
        return self._coder.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        ids = self._coder.encode(string)
        adds = self._coder.adds_bos if add_special_tokens is None else add_special_tokens
        return [self._coder.bos_id, *ids] if adds and self._coder.bos_id is not None else ids

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        spans = [self._span(text, before, after) for text, before, after in requests]
        scores = self._score(spans, "loglikelihood")
        return [(-float(score.losses.sum(dtype=np.float64)), bool(score.likeliest.all())) for score in scores]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        texts = [
            cut_spans(
                self._coder.encode(request.args[0]),
                begin=self.prefix_token_id,
                context=self.max_length,
                stride=self.max_length,
            )
            for request in requests
        ]
        scores = iter(self._score([span for spans in texts for span in spans], "loglikelihood_rolling"))
        return [-sum(float(next(scores).losses.sum(dtype=np.float64)) for _ in spans) for spans in texts]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        asked = [self._generation(request.args[1]) for request in requests]
        prompts = [
            (self.tok_encode(request.args[0]) or [self.prefix_token_id])[-(self.max_length - how.limit) :]
            for request, how in zip(requests, asked, strict=True)
        ]
        batches = plan_batches([len(p) + how.limit for p, how in zip(prompts, asked, strict=True)], self._batch_tokens)
        mine: dict[int, str] = {}
        progress = Progress("generate_until", len(batches))
        for number, batch in enumerate(batches[self._model.share :: self._model.shares]):
            texts = self._continue([prompts[index] for index in batch], [asked[index] for index in batch])
            mine.update(zip(batch, texts, strict=True))
            progress.reached((number + 1) * self._model.shares)
        everyone: dict[int, str] = {}
        for part in self._gather(mine):
            everyone.update(part)
        return [everyone[number] for number in range(len(requests))]

    def _score(self, spans: list[Span], what: str) -> list:
        """Raises CheckpointError where a loss is not finite: an answer would be chosen all the same."""
        scores = score_spans(self._model, spans, batch_tokens=self._batch_tokens, gather=self._gather, what=what)
        bad = [score for score in scores if not np.isfinite(score.losses).all()]
        if bad:
            raise CheckpointError(
                f"{what}: {len(bad)} of {len(scores)} losses are not finite\n"
                "  fix: its weights or activations are not finite; look at an earlier checkpoint"
            )
        return scores

    def _span(self, text: tuple[str, str], before: list[int], after: list[int]) -> Span:
        """The end of `before` and the whole of `after`, cut on the left where they are more than the context."""
        if not after or len(after) > self.max_length:
            raise DataError(
                f"the answer {text[1][:60]!r} has {len(after):,} tokens; it needs 1 to {self.max_length:,}, the context"
            )
        whole = np.array([*before, *after][-(self.max_length + 1) :], np.int64)
        return Span(whole, min(len(after), len(whole) - 1))

    def _generation(self, given: dict) -> Generation:
        settings = dict(given)
        until = settings.pop("until", None) or []
        limits = [settings.pop(name) for name in _LIMITS if name in settings]
        sampled, temperature = settings.pop("do_sample", None), float(settings.pop("temperature", 0.0) or 0.0)
        limit = int(limits[0]) if limits else min(_DEFAULT_LIMIT, self.max_length // 2)
        if settings:
            names = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            raise ConfigError(Problem("generation_kwargs", f"not known here: {names}", "leave it out of the task"))
        if limit >= self.max_length:
            rule = f"must be less than the context of {self.max_length:,} tokens"
            raise ConfigError(Problem("generation_kwargs.max_gen_toks", rule, value=limit))
        return Generation(
            limit, tuple([until] if isinstance(until, str) else until), 0.0 if sampled is False else temperature
        )

    def _continue(self, prompts: list[list[int]], asked: list[Generation]) -> list[str]:
        """The texts of prompts that are continued together."""
        requests = [
            Request(prompt, how.limit, how.temperature, functools.partial(self._is_ended, how=how))
            for prompt, how in zip(prompts, asked, strict=True)
        ]
        new = continue_texts(self._model, requests, vocab_size=self._coder.vocab_size, seed=self._seed)
        return [self._text(ids, how)[0] for ids, how in zip(new, asked, strict=True)]

    def _is_ended(self, new: list[int], how: Generation) -> bool:
        return self._text(new, how)[1]

    def _text(self, new: list[int], how: Generation) -> tuple[str, bool]:
        """(the text so far, whether it has ended: at the end-of-document token or at a text of `until`)."""
        at_end = new[-1] == self._coder.eod_id
        text = self._coder.decode(new[:-1] if at_end else new)
        stops = [text.find(stop) for stop in how.until if stop and stop in text]
        return (text[: min(stops)] if stops else text), at_end or bool(stops)
