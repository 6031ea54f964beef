"""Texts from a checkpoint of any kind, in one process."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.errors import ConfigError, DataError, Problem
from megatron_sky.generation.engine import LENGTH, Answer, Engine, Request, plan_batches
from megatron_sky.generation.load import load_for_generation
from megatron_sky.generation.sampling import Sampling
from megatron_sky.inference.checkpoints import Checkpoint, open_checkpoint, read_latest
from megatron_sky.log import get_logger
from megatron_sky.tokenizer.chat_template import ChatTemplate, find_template, template_beside
from megatron_sky.tokenizer.coder import TextCoder

if TYPE_CHECKING:
    import torch

log = get_logger(__name__)

_SECONDS_BETWEEN_NEWS = 30
Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is loaded, and the chat template that goes with it, if any."""

    checkpoint: Checkpoint
    engine: Engine
    template: ChatTemplate | None

    def needed_template(self) -> ChatTemplate:
        """Raises DataError where there is none."""
        if self.template is None:
            raise DataError(
                f"{self.checkpoint.path}: its tokenizer has no chat template\n"
                "  fix: --chat-template skywork, chatml, llama2 or a file, as the model was trained"
            )
        return self.template

    def encode_chat(self, messages: Sequence[dict]) -> list[int]:
        """The ids of a conversation up to the answer that is to come. Raises DataError."""
        coder = self.engine.coder
        return coder.encode_rendered(self.needed_template().prompt(messages, special=coder.special))

    @property
    def stop_of_turn(self) -> tuple[str, ...]:
        """What ends an answer beside the end token: the template's word for it."""
        end = self.needed_template().end_of_turn(special=self.engine.coder.special)
        return (end,) if end and end != self.engine.coder.special.get("eos_token") else ()


def open_engine(
    folder: Path, *, dtype: str | None = None, chat_template: str | None = None, base: Path | None = None
) -> Opened:
    """A checkpoint, a run's latest, or a Hugging Face folder, loaded on the GPU where there is one.

    `chat_template` None: the one beside its tokenizer. `base`: the model beneath adapters, where it was moved. Raises
    CheckpointError, DataError, ConfigError.
    """
    template = None if chat_template is None else find_template(chat_template)
    return _load(open_checkpoint(folder, base=base), dtype, template)


def _load(checkpoint: Checkpoint, dtype: str | None, template: ChatTemplate | None = None) -> Opened:
    from megatron_sky.distributed import device

    assert checkpoint.coder.vocab_size  # before its weights are read: it may lack one
    checkpoint, engine = read_latest(checkpoint, lambda newest: engine_of(newest, device.use(0), dtype))
    return Opened(checkpoint, engine, template or template_beside(checkpoint.path))


def engine_of(checkpoint: Checkpoint, device: "torch.device", dtype: str | None = None) -> Engine:
    """The checkpoint loaded on a device, with its tokenizer; it ends at the tokenizer's end and at its own."""
    model, ends = load_for_generation(checkpoint, device, dtype)
    coder = checkpoint.coder
    own = () if coder.eod_id is None else (coder.eod_id,)
    return Engine(model, coder, checkpoint.context, frozenset((*ends, *own)))


def generate_texts(
    folder: Path,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    base: Path | None = None,
    show: Callable[[str], None] | None = None,
) -> list[str]:
    """Each prompt with its continuation, up to an end, the context length, or max_new_tokens.

    `folder` is a checkpoint, a run for its latest, or a Hugging Face folder. The tokenizer is the one saved in it. A
    continuation that the context length ends before `max_new_tokens` is said. `show` gets the texts as they grow, one
    after the other; then each is a batch of its own.

    Raises:
        ConfigError: a prompt that leaves no token of the context length.
        CheckpointError: no whole checkpoint, or one without a tokenizer, or one that transformers has no form of.
    """
    checkpoint = open_checkpoint(folder, base=base)
    check_lengths(prompts, [checkpoint.coder.encode_prompt(prompt) for prompt in prompts], checkpoint.context)
    opened = _load(checkpoint, dtype)
    coder = opened.engine.coder
    requests = [text_request(coder, prompt, sampling, opened.engine.context) for prompt in prompts]
    texts = [coder.decode(coder.encode(prompt)) for prompt in prompts]
    if show is None:
        for number, answer in answer_all(opened.engine, requests, sampling, batch_size):
            _tell_context(number, requests[number], answer, sampling, opened.engine.context)
            texts[number] += answer.text
        return texts
    for number, request in enumerate(requests):
        show(texts[number])
        (answer,) = opened.engine.generate([replace(request, on_text=show)], sampling)
        show("\n")
        _tell_context(number, request, answer, sampling, opened.engine.context)
        texts[number] += answer.text
    return texts


def text_request(coder: TextCoder, prompt: str, sampling: Sampling, context: int) -> Request:
    """A text to be continued; an empty one starts where a document starts."""
    ids = coder.encode_prompt(prompt)
    limit = min(sampling.max_new_tokens, context - len(ids))
    return Request(ids, limit, before=coder.encode(prompt), stop=sampling.stop)


def answer_all(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """(number, answer) of each request, batch after batch; how far it is, is said now and then."""
    last, done = time.monotonic(), 0
    for batch in plan_batches(requests, context=engine.context, batch_size=batch_size):
        answers = engine.generate([requests[number] for number in batch], sampling)
        yield from zip(batch, answers, strict=True)
        done += len(batch)
        if time.monotonic() - last > _SECONDS_BETWEEN_NEWS:
            last = time.monotonic()
            log.info("%d of %d prompts are continued", done, len(requests))


def check_lengths(prompts: Sequence[str], encoded: Sequence[Sequence[int]], context_length: int) -> None:
    """Raises ConfigError that names all prompts that are too long."""
    problems = [
        Problem(
            f"prompt {number}",
            f"is {len(ids):,} tokens, which leaves none of the model's context length ({context_length:,} tokens)",
            f"give less text: at most {context_length - 1:,} tokens, best the last ones",
            f"{prompt[:30]}...",
        )
        for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), 1)
        if len(ids) >= context_length
    ]
    if problems:
        raise ConfigError(problems)


def _tell_context(number: int, request: Request, answer: Answer, sampling: Sampling, context: int) -> None:
    if answer.ended == LENGTH and request.limit < sampling.max_new_tokens:
        text = "prompt %d: its continuation ends at the context length, %d tokens, before its --max-new-tokens"
        log.warning(text, number + 1, context)
