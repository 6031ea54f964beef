"""Trainings that Megatron-LM's script and this package are both given, as Megatron-LM's arguments.

A case is what it changes of `BASE`: a flag with its value, True for a flag alone, None for one that is left out. The
texts are numbers by a seeded rule (`write_tokens`), so that neither side needs a file of the other.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

VOCAB_SIZE, SEQ_LENGTH, STEPS, BATCH = 96, 32, 8, 8
ADDS_A_TOKEN = ("0.16", "0.17")
"""Versions whose NullTokenizer has one token more than --vocab-size says, for the end of a document."""

RECORDED = Path(__file__).parent / "recorded"

# A flag's value, or its values; None leaves the flag out.
Flags = dict[str, object]

BASE: Flags = {
    "num-layers": 4,
    "hidden-size": 32,
    "ffn-hidden-size": 64,
    "num-attention-heads": 4,
    "seq-length": SEQ_LENGTH,
    "max-position-embeddings": SEQ_LENGTH,
    "position-embedding-type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "disable-bias-linear": True,
    "untie-embeddings-and-output-weights": True,
    "attention-dropout": 0,
    "hidden-dropout": 0,
    "init-method-std": 0.05,
    "micro-batch-size": 2,
    "global-batch-size": BATCH,
    "train-iters": STEPS,
    "lr": 0.01,
    "min-lr": 0.001,
    "lr-decay-style": "cosine",
    "lr-warmup-iters": 2,
    "weight-decay": 0.1,
    "clip-grad": 1.0,
    "adam-beta1": 0.9,
    "adam-beta2": 0.95,
    "tokenizer-type": "NullTokenizer",
    "make-vocab-size-divisible-by": 4,
    "seed": 1234,
    "split": "100,0,0",
    "eval-iters": 0,
    "eval-interval": 1000,
    "log-interval": 1,
    "save-interval": 1000,
}

ON_A_CPU: Flags = {
    "transformer-impl": "local",
    "attention-backend": "unfused",
    "distributed-backend": "gloo",
    "use-cpu-initialization": True,
    "num-workers": 0,
    "no-persist-layer-norm": True,
    "no-gradient-accumulation-fusion": True,
    "no-masked-softmax-fusion": True,
    "no-bias-swiglu-fusion": True,
    "no-bias-dropout-fusion": True,
    "no-rope-fusion": True,
}
"""What Megatron-LM needs to run without a GPU; nothing of it changes the numbers."""

GPT2: Flags = {
    "position-embedding-type": "learned_absolute",
    "normalization": "LayerNorm",
    "swiglu": None,
    "disable-bias-linear": None,
    "untie-embeddings-and-output-weights": None,
    "weight-decay": 0.5,
}


@dataclass(frozen=True)
class Case:
    """A training: what it changes, and how it is run."""

    flags: Flags = field(default_factory=dict)
    world_size: int = 1
    sources: tuple[str, ...] = ("web",)
    """Prefixes under the folder of tokens, with weights between them where there are several."""
    resumes_after: int | None = None
    """The step after which the script is ended and started again."""
    only: str | None = None
    """The one version that has these flags."""
    tolerance: float = 2e-6
    """How far losses may be apart, in nats a token; norms in proportion."""


CASES: dict[str, Case] = {
    "llama": Case(),
    "gpt2": Case(GPT2),
    "llama_tied": Case({"untie-embeddings-and-output-weights": None}),
    "gpt2_exact_gelu": Case(GPT2 | {"no-bias-gelu-fusion": True}),
    "gpt2_untied": Case(GPT2 | {"untie-embeddings-and-output-weights": True}),
    "gqa": Case({"group-query-attention": True, "num-query-groups": 2}),
    "head_size_of_its_own": Case({"kv-channels": 16}),
    "warmup_linear": Case({"lr-decay-style": "linear", "lr-warmup-iters": 3, "lr-warmup-init": 0.002}),
    "constant": Case({"lr-decay-style": "constant", "lr-warmup-iters": 0}),
    "decay_ends_early": Case({"lr-decay-iters": 5, "lr-warmup-iters": None, "lr-warmup-fraction": 0.3}),
    "inverse_square_root": Case({"lr-decay-style": "inverse-square-root"}),
    "inverse_square_root_without_warmup": Case({"lr-decay-style": "inverse-square-root", "lr-warmup-iters": 0}),
    **{
        f"wsd_{style}": Case({"lr-decay-style": "WSD", "lr-wsd-decay-iters": 4, "lr-wsd-decay-style": style})
        for style in ("linear", "cosine", "exponential", "minus_sqrt")
    },
    "wsd_by_default": Case({"lr-decay-style": "WSD", "lr-wsd-decay-iters": 4}),
    "samples": Case({"train-iters": None, "lr-warmup-iters": None, "train-samples": 60, "lr-warmup-samples": 13}),
    "batch_rampup": Case(
        {
            **{"train-iters": None, "lr-warmup-iters": None, "train-samples": 72, "lr-warmup-samples": 16},
            "rampup-batch-size": (2, 2, 24),
        },
        only="0.16",
    ),
    "batch_steps": Case(
        {
            **{"train-iters": None, "lr-warmup-iters": None, "train-samples": 72, "lr-warmup-samples": 16},
            **{"global-batch-size": None, "step-batch-size-schedule": "0:4 512:6 1024:8"},
        },
        only="0.19",
    ),
    "clip": Case({"clip-grad": 0.05, "weight-decay": 1.0}),
    "no_clip": Case({"clip-grad": 0.0, "weight-decay": 0.0}),
    "adam": Case({"adam-beta1": 0.8, "adam-beta2": 0.9, "adam-eps": 1e-5}),
    "tp2": Case({"tensor-model-parallel-size": 2}, 2),
    "pp2": Case({"pipeline-model-parallel-size": 2}, 2),
    "pp2_vpp2": Case({"pipeline-model-parallel-size": 2, "num-layers-per-virtual-pipeline-stage": 1}, 2),
    "pp2_gpt2": Case(GPT2 | {"pipeline-model-parallel-size": 2}, 2),
    "dp2": Case({}, 2),
    "dp2_distributed_optimizer": Case({"use-distributed-optimizer": True}, 2),
    "bf16": Case({"bf16": True}, tolerance=2e-3),
    "bf16_gpt2": Case(GPT2 | {"bf16": True}, tolerance=2e-3),
    "two_sources": Case({}, sources=("0.7", "web", "0.3", "books")),
    "two_sources_by_size": Case({}, sources=("web", "books")),
    "split": Case({"split": "60,30,10", "eval-iters": 1}, sources=("0.7", "web", "0.3", "books")),
    "split_of_one": Case({"split": "940,50,10"}),
    "resume": Case({}, resumes_after=4),
    "resume_distributed_optimizer": Case(  # in fp32 it can load its optimizer in this form alone
        {"use-distributed-optimizer": True, "dist-ckpt-optim-fully-reshardable": True}, 2, resumes_after=4
    ),
}


def arguments(case: Case, version: str, tokens: Path) -> list[str]:
    """The words of the case's arguments, without those that only a CPU needs."""
    flags = BASE | {"vocab-size": VOCAB_SIZE - (version.startswith(ADDS_A_TOKEN))} | case.flags
    sources = [word if _is_number(word) else str(tokens / word) for word in case.sources]
    return [*words(flags), "--data-path", *sources]


def words(flags: Flags) -> list[str]:
    """Flags as words of a command line."""
    command = []
    for name, value in flags.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        command += [] if value is None else [f"--{name}", *map(str, values)]
    return command


def of_version(version: str) -> dict[str, Case]:
    """The cases that this version of Megatron-LM can run."""
    return {name: case for name, case in CASES.items() if case.only is None or version.startswith(case.only)}


def write_tokens(folder: Path) -> None:
    """`web` and `books`: documents of 5 to 59 tokens in which a token mostly follows from the one before it."""
    from megatron_sky.data.tokens.writer import IndexedWriter

    folder.mkdir(parents=True, exist_ok=True)
    for name, seed, documents in (("web", 1, 200), ("books", 2, 90)):
        random = np.random.RandomState(seed)  # whose numbers no version of NumPy changes
        with IndexedWriter(folder / name, np.uint16) as writer:
            for _ in range(documents):
                writer.add_document(_document(random, random.randint(5, 60)))


def _document(random: np.random.RandomState, length: int) -> np.ndarray:
    tokens = [random.randint(VOCAB_SIZE - 1)]
    for _ in range(length - 2):
        follows = random.random_sample() < 0.8
        tokens.append((tokens[-1] * 5 + 7) % (VOCAB_SIZE - 1) if follows else random.randint(VOCAB_SIZE - 1))
    return np.array([*tokens, VOCAB_SIZE - 1], dtype=np.uint16)


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdigit()
