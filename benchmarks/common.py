"""What the training benchmarks share: the model's shape, token files to train on, and the table of two sides' times."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path

SHAPE = {
    "vocab_size": 16384,
    "hidden_size": 512,
    "ffn_hidden_size": 1408,
    "num_layers": 10,
    "num_attention_heads": 8,
    "seq_length": 512,
}
"""LLaMA-like, 49.7 M parameters, embedding and output layer untied (16.8 M of them)."""

WARMUP_STEPS = 2
"""Of the learning rate."""


def write_tokens(prefix: Path, num_tokens: int, seed: int = 1234) -> None:
    """A learnable .bin/.idx pair: half of the tokens follow from the one before, the rest are Zipf-distributed."""
    import numpy as np

    from megatron_sky.data.tokens.indexed import token_dtype
    from megatron_sky.data.tokens.writer import IndexedWriter

    vocab_size = SHAPE["vocab_size"]
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.2, num_tokens), vocab_size) - 1
    follower = rng.permutation(vocab_size)
    for at in np.flatnonzero(rng.random(num_tokens) < 0.5):
        tokens[at] = follower[tokens[at - 1]]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(prefix, token_dtype(vocab_size)) as writer:
        for document in np.split(tokens, range(10_000, num_tokens, 10_000)):
            writer.add_document(document)


def recipe(
    folder: Path,
    *,
    steps: int,
    dtype: str,
    micro_batch_size: int,
    global_batch_size: int,
    threads: int,
    distributed_optimizer: bool = True,
):
    """The run's resolved config; writes its tokens into `folder` if they are not there."""
    from megatron_sky.config.schema import Config
    from megatron_sky.data.tokens.indexed import bin_path

    tokens = folder / "tokens"
    if not bin_path(tokens).exists():
        write_tokens(tokens, 4_000_000)
    return Config.model_validate(
        {
            "model": SHAPE,
            "precision": {"dtype": dtype},
            "parallel": {"distributed_optimizer": distributed_optimizer},
            "data": {"train": [{"name": "bench", "path": str(tokens)}]},
            "schedule": {
                "style": "constant",
                "lr": 1e-3,
                "warmup_tokens": WARMUP_STEPS * global_batch_size * SHAPE["seq_length"],
            },
            "train": {
                "run_dir": str(folder / "run"),
                "tokens": steps * global_batch_size * SHAPE["seq_length"],
                "global_batch_size": global_batch_size,
                "micro_batch_size": micro_batch_size,
                "num_threads": threads,
            },
        }
    )


@dataclass
class Side:
    """One side of a comparison: each of its blocks' wall seconds, and CPU seconds over all its threads and processes.

    CPU seconds do not count other programs on the machine: where the two ratios differ, the machine was not idle.
    """

    name: str
    tokens_per_block: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def told(ours: Side, theirs: Side) -> str:
    """Each side's median, quartiles and best block, and the ratios of ours to theirs, as lines of text."""
    lines = [f"{'':18} {'tokens/s':>9} {'median s':>9} {'quartiles s':>17} {'best s':>8} {'CPU s':>8} {'blocks':>7}"]
    for side in (ours, theirs):
        low, middle, high = statistics.quantiles(side.seconds, n=4)
        spread, best, cpu = f"{low:.3f} .. {high:.3f}", min(side.seconds), statistics.median(side.cpu_seconds)
        rate, blocks = side.tokens_per_block / middle, len(side.seconds)
        lines.append(f"{side.name:18} {rate:9,.0f} {middle:9.3f} {spread:>17} {best:8.3f} {cpu:8.3f} {blocks:>7}")
    wall = statistics.median(ours.seconds) / statistics.median(theirs.seconds)
    best = min(ours.seconds) / min(theirs.seconds)
    cpu = statistics.median(ours.cpu_seconds) / statistics.median(theirs.cpu_seconds)
    lines.append(f"{ours.name} / {theirs.name}: {wall:.3f} of the time ({1 / wall:.3f} of the tokens/s)")
    lines.append(f"{ours.name} / {theirs.name}: {best:.3f} of the time by the best blocks, {cpu:.3f} of the CPU time")
    return "\n".join(lines)
