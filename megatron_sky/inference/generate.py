"""Text from a checkpoint of any layout, in one process.

The weights are read into an unsplit model; each new token runs the whole sequence through it again. Without a
key/value cache that is quadratic, and enough to hear what a small model has learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint import state as checkpoints
from megatron_sky.checkpoint import store
from megatron_sky.config.schema import ParallelConfig, PrecisionConfig
from megatron_sky.data.tokenizer import Tokenizer, load_tokenizer
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.log import get_logger
from megatron_sky.model.build import build_model

log = get_logger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest."""

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 1234


def generate_texts(checkpoint: Path, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """Each prompt with its continuation, up to the end-of-document token, the context length, or max_tokens.

    `checkpoint` is a checkpoint folder, or a run folder for its latest. The tokenizer is the one saved in it.
    """
    folder = store.resolve(checkpoint, log.warning)
    saved = checkpoints.read_saved(folder)
    tokenizer = load_tokenizer(checkpoints.tokenizer_in(folder))
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
        checkpoints.load(folder, context=context, chunks=[model])
        model.eval()
        limit = saved.config.model.seq_length
        return [_continue(model, tokenizer, prompt, limit, sampling, context.device) for prompt in prompts]


def _continue(model, tokenizer: Tokenizer, prompt: str, limit: int, sampling: Sampling, device) -> str:
    import torch

    ids = tokenizer.encode(prompt) or [tokenizer.eod_id]  # an empty prompt starts where a document starts
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    with torch.no_grad():
        for _ in range(min(sampling.max_tokens, limit - len(ids))):
            tokens = torch.tensor([ids], device=device)
            positions = torch.arange(len(ids), device=device)[None]
            logits = model(tokens, positions, None)[0, -1, : tokenizer.vocab_size].float()
            ids.append(_choose(logits, sampling.temperature, generator))
            if ids[-1] == tokenizer.eod_id:
                break
    return tokenizer.decode(ids)


def _choose(logits, temperature: float, generator) -> int:
    import torch

    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator))
