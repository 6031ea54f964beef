"""Text from a checkpoint of any kind, in one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.config.schema import ParallelConfig
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.inference.checkpoints import load_latest, open_checkpoint
from megatron_sky.log import get_logger
from megatron_sky.tokenizer.coder import TextCoder

log = get_logger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest."""

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 1234


def generate_texts(folder: Path, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """Each prompt with its continuation, up to the end-of-document token, the context length, or max_tokens.

    `folder` is a checkpoint, a run for its latest, or a Hugging Face folder. The tokenizer is the one saved in it. A
    continuation that the context length ends before `max_tokens` is said.

    Raises:
        ConfigError: a prompt that leaves no token of the context length.
        CheckpointError: no whole checkpoint, or one without a tokenizer.
    """
    from megatron_sky.inference.continuation import Request, continue_texts

    checkpoint = open_checkpoint(folder)
    coder, context_length = checkpoint.coder, checkpoint.context
    encoded = _encode(coder, prompts, context_length)
    texts = []
    with open_context(ParallelConfig(distributed_optimizer=False), RankInfo()) as context:
        _, model = load_latest(checkpoint, context)
        for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), 1):
            limit = min(sampling.max_tokens, context_length - len(ids))
            request = Request(ids, limit, sampling.temperature, lambda new: new[-1] == coder.eod_id)
            (new,) = continue_texts(model, [request], vocab_size=coder.vocab_size, seed=sampling.seed)
            ended = request.ended(new)
            if len(new) == limit < sampling.max_tokens and not ended:
                text = "prompt %d: its continuation ends at the context length, %d tokens, before its --max-tokens"
                log.warning(text, number, context_length)
            texts.append(coder.decode([*coder.encode(prompt), *(new[:-1] if ended else new)]))
    return texts


def _encode(coder: TextCoder, prompts: Sequence[str], context_length: int) -> list[list[int]]:
    """Each prompt's ids; an empty prompt starts where a document starts. All that are too long are named at once."""
    encoded = [coder.encode_prompt(prompt) for prompt in prompts]
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
    return encoded
