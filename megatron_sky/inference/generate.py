"""Text from a checkpoint of any layout, in one process.

The weights are read into an unsplit model; each new token runs the whole sequence through it again. Without a
key/value cache that is quadratic, and enough to hear what a small model has learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint import description, state, store
from megatron_sky.config.schema import ParallelConfig, PrecisionConfig
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.log import get_logger
from megatron_sky.model.build import build_model
from megatron_sky.tokenizer.kinds import Tokenizer, load_tokenizer

log = get_logger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest."""

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 1234


def generate_texts(checkpoint: Path, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """Each prompt with its continuation, up to the end-of-document token, the context length, or max_tokens.

    `checkpoint` is a checkpoint folder, or a run folder for its latest. The tokenizer is the one saved in it. A
    continuation that the context length ends before `max_tokens` is told.

    Raises:
        ConfigError: a prompt that leaves no token of the context length.
        CheckpointError: no whole checkpoint, or one without a tokenizer.
    """
    folder = store.resolve(checkpoint, log.warning)
    saved = description.read_description(folder)
    tokenizer = load_tokenizer(description.tokenizer_in(folder))
    limit = saved.config.model.seq_length
    encoded = _encode(tokenizer, prompts, limit)
    single = ParallelConfig(distributed_optimizer=False)
    with open_context(single, RankInfo()) as context:
        precision = saved.config.precision if context.device.type != "cpu" else PrecisionConfig(dtype="fp32")
        context.seed_step(sampling.seed, 0)
        model = build_model(
            saved.model,
            parallel=single,
            precision=precision,
            train=saved.config.train,
            context=context,
            ddp=False,
            init=False,
        ).chunks[0]
        state.load(folder, context=context, chunks=[model])
        model.eval()
        return [_continue(model, tokenizer, ids, limit, sampling, context.device) for ids in encoded]


def _encode(tokenizer: Tokenizer, prompts: Sequence[str], limit: int) -> list[list[int]]:
    """Each prompt's ids; an empty prompt starts where a document starts. All that are too long are told at once."""
    encoded = [tokenizer.encode(prompt) or [tokenizer.eod_id] for prompt in prompts]
    problems = [
        Problem(
            f"prompt {number}",
            f"is {len(ids):,} tokens, which leaves none of the model's context length ({limit:,} tokens)",
            f"give less text: at most {limit - 1:,} tokens, best the last ones",
            f"{prompt[:30]}...",
        )
        for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), 1)
        if len(ids) >= limit
    ]
    if problems:
        raise ConfigError(problems)
    return encoded


def _continue(model, tokenizer: Tokenizer, prompt: list[int], limit: int, sampling: Sampling, device) -> str:
    import torch

    ids = list(prompt)
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    with torch.no_grad():
        for _ in range(min(sampling.max_tokens, limit - len(ids))):
            tokens = torch.tensor([ids], device=device)
            positions = torch.arange(len(ids), device=device)[None]
            logits = model(tokens, positions, None)[0, -1, : tokenizer.vocab_size].float()
            ids.append(_choose(logits, sampling.temperature, generator))
            if ids[-1] == tokenizer.eod_id:
                break
        else:
            if len(ids) == limit and limit - len(prompt) < sampling.max_tokens:
                log.warning("a continuation ends at the context length, %d tokens, before its --max-tokens", limit)
    return tokenizer.decode(ids)


def _choose(logits, temperature: float, generator) -> int:
    import torch

    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator))
