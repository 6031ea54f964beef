"""EleutherAI's lm-eval harness on a model of ours: its three requests, batched by length.

Every process answers every request and shares the batches with the others, so the harness sees one model.
"""

import numpy as np
from lm_eval.api.model import TemplateLM

from megatron_sky.errors import CheckpointError, ConfigError, DataError, Problem
from megatron_sky.evaluate.scoring import Progress, score_spans
from megatron_sky.evaluate.windows import Span, cut_spans, plan_batches
from megatron_sky.generation.engine import Engine, Request
from megatron_sky.generation.engine import plan_batches as plan_generation
from megatron_sky.generation.sampling import NAMES, Sampling
from megatron_sky.inference.model import Model
from megatron_sky.tokenizer.coder import TextCoder

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's names, strongest first
_OPTIONS = set(NAMES) - {"max_new_tokens", "temperature", "stop"}
_DEFAULT_LIMIT = 256  # lm-eval's own, where the context allows


class HarnessModel(TemplateLM):
    """lm-eval's view of a model. A text without a context is predicted after the token that begins a document.

    `engine` continues texts; None where no task asks for that.
    """

    def __init__(
        self,
        model: Model,
        coder: TextCoder,
        *,
        context: int,
        batch_tokens: int,
        gather,
        engine: Engine | None = None,
    ):
        super().__init__()
        self._model, self._coder, self._gather, self._engine = model, coder, gather, engine
        self._batch_tokens = batch_tokens
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
        assert self._engine is not None, "a task generates, and no engine was given"
        options = [self._sampling(request.args[1]) for request in requests]
        prompts = [
            (self.tok_encode(request.args[0]) or [self.prefix_token_id])[-(self.max_length - how.max_new_tokens) :]
            for request, how in zip(requests, options, strict=True)
        ]
        batches = self._batches(prompts, options)
        mine: dict[int, str] = {}
        progress = Progress("generate_until", len(batches))
        for number, batch in enumerate(batches[self._model.share :: self._model.shares]):
            rows = [Request(prompts[index], options[index].max_new_tokens, stop=options[index].stop) for index in batch]
            answers = self._engine.generate(rows, options[batch[0]])
            mine.update((index, answer.text) for index, answer in zip(batch, answers, strict=True))
            progress.reached((number + 1) * self._model.shares)
        everyone: dict[int, str] = {}
        for part in self._gather(mine):
            everyone.update(part)
        return [everyone[number] for number in range(len(requests))]

    def _batches(self, prompts: list[list[int]], options: list[Sampling]) -> list[list[int]]:
        """The numbers of the requests of each batch: with the same options, and of `batch_tokens` at most."""
        batches = []
        for how in dict.fromkeys(options):
            numbers = [number for number, other in enumerate(options) if other == how]
            rows = [Request(prompts[number], how.max_new_tokens) for number in numbers]
            for planned in plan_batches([len(row.prompt) + row.limit for row in rows], self._batch_tokens):
                fitting = plan_generation(
                    [rows[index] for index in planned], context=self.max_length, batch_size=len(planned)
                )
                batches += [[numbers[planned[index]] for index in batch] for batch in fitting]
        return batches

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

    def _sampling(self, given: dict) -> Sampling:
        """A task's `generation_kwargs`; without `do_sample` a temperature counts. Raises ConfigError."""
        settings = dict(given)
        until = settings.pop("until", None) or []
        limits = [settings.pop(name) for name in _LIMITS if name in settings]
        sampled, temperature = settings.pop("do_sample", None), float(settings.pop("temperature", 0.0) or 0.0)
        limit = int(limits[0]) if limits else min(_DEFAULT_LIMIT, self.max_length // 2)
        if unknown := settings.keys() - _OPTIONS:
            names = ", ".join(f"{name}={settings[name]!r}" for name in sorted(unknown))
            raise ConfigError(Problem("generation_kwargs", f"not known here: {names}", "leave it out of the task"))
        if limit >= self.max_length:
            rule = f"must be less than the context of {self.max_length:,} tokens"
            raise ConfigError(Problem("generation_kwargs.max_gen_toks", rule, value=limit))
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        given_on = {name: value for name, value in settings.items() if value is not None}
        heat = 0.0 if sampled is False else temperature
        return Sampling(max_new_tokens=limit, stop=stop, temperature=heat, **given_on)
