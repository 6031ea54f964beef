"""Two checkpoints compared by what they compute: hidden states layer by layer, then logits, on real text.

Each side runs with its own library's modules in float32: a native or Megatron-LM checkpoint with megatron-core's, a
Hugging Face folder loaded and run by transformers alone. Only one layer of each side is in float32 at a time, beside
the embeddings, so a 13 B model fits on one machine. Where the hidden states first part, the weights of that layer are
compared one by one, and where those are equal, the two descriptions of the model.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32, same_bits
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.sources import HF, Source, open_source
from megatron_sky.errors import CheckpointError, DataError
from megatron_sky.files import read_text
from megatron_sky.inference.hf_folder import check_name
from megatron_sky.log import get_logger
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.tokenizer.sample_text import SAMPLES

log = get_logger(__name__)

_DIVERGED = (
    1e-4  # hidden states part where they differ by this fraction of their largest value; rounding stays below 1e-5
)
_COMPUTED = [
    "num_attention_heads query_groups head_size position_embedding rotary_base rope_scaling normalization norm_epsilon",
    "activation add_bias_linear tie_embeddings",
]


@dataclass
class Report:
    """What the comparison found; `str()` is for people."""

    a: str
    b: str
    num_tokens: int
    largest_difference: float
    """Of any logit, absolute."""
    largest_logit: float
    next_token_agreement: float
    """Fraction of positions at which both find the same token likeliest."""
    tolerance: float
    stages: list[tuple[str, float]]
    """(embedding or layer, largest difference of its hidden states as a fraction of their largest value)."""
    first_divergence: str | None = None
    causes: list[str] = field(default_factory=list)
    tokenizer_note: str | None = None

    @property
    def agree(self) -> bool:
        return self.largest_difference <= self.tolerance and self.tokenizer_note is None

    def __str__(self) -> str:
        lines = [
            f"A {self.a}",
            f"B {self.b}",
            f"{self.num_tokens} tokens: largest difference of logits {self.largest_difference:.2e} (largest logit "
            f"{self.largest_logit:.3g}), same next token at {self.next_token_agreement:.2%}",
        ]
        if self.first_divergence is not None:
            lines.append(f"hidden states part at: {self.first_divergence}")
            lines += [f"  likely cause: {cause}" for cause in self.causes]
        if self.tokenizer_note is not None:
            lines.append(f"tokenizers: {self.tokenizer_note}")
        verdict = "agree" if self.agree else "DIFFER"
        return "\n".join([*lines, f"they {verdict} (tolerance {self.tolerance:.0e})"])


def compare(
    a: Path,
    b: Path,
    *,
    text: Path | None = None,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    recipe: Path | None = None,
    max_tokens: int = 512,
    tolerance: float = 1e-4,
) -> Report:
    """Compares the checkpoints `a` and `b` on `text` (a file; None: built-in passages).

    Raises CheckpointError when one can't be opened, or they are models of different sizes, DataError for the text.
    """
    texts = SAMPLES if text is None else (_read_text(text),)
    sources = [open_source(path, tokenizer=tokenizer, vocab_size=vocab_size, recipe=recipe) for path in (a, b)]
    _check_same_size(*sources)
    passages = _passages(sources, texts, max_tokens)
    with contextlib.ExitStack() as stack, _no_grad():
        single = functools.cache(lambda: stack.enter_context(_open_single()))  # one group of this process for both
        runners = [_runner(source, single) for source in sources]
        report = _run(runners, sources, passages, tolerance)
    report.tokenizer_note = _compare_tokenizers(sources, texts)
    return report


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {error}\n  fix: give a text file in UTF-8") from error


def _run(runners: list, sources: list[Source], passages: list[list[int]], tolerance: float) -> Report:
    stages = []
    hidden = [[runner.embed(tokens) for tokens in passages] for runner in runners]
    stages.append(("embedding", _relative(*hidden)))
    for layer in range(sources[0].model.num_layers):
        for side, runner in enumerate(runners):
            runner.load_layer(layer)
            hidden[side] = [runner.layer(rows) for rows in hidden[side]]
        stages.append((f"layer {layer}", _relative(*hidden)))
    logits = [
        np.concatenate([runner.logits(rows) for rows in states]) for runner, states in zip(runners, hidden, strict=True)
    ]
    report = Report(
        a=_described(sources[0]),
        b=_described(sources[1]),
        num_tokens=len(logits[0]),
        largest_difference=_largest(logits[0] - logits[1]),
        largest_logit=_largest(logits[0]),
        next_token_agreement=float((logits[0].argmax(-1) == logits[1].argmax(-1)).mean()),
        tolerance=tolerance,
        stages=stages,
    )
    if not report.largest_difference <= tolerance:
        report.first_divergence = next(
            (name for name, difference in stages if not difference <= _DIVERGED), "final norm or output"
        )
        report.causes = _causes(sources, report.first_divergence)
    return report


def _described(source: Source) -> str:
    by = f", loaded by transformers {version('transformers')}" if source.kind == HF else ""
    return f"{source.folder} ({source.kind}{by})"


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max()) if np.isfinite(values).all() else float("inf")


def _relative(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    scale = max(_largest(tensor) for tensor in a)
    return max(_largest(x - y) for x, y in zip(a, b, strict=True)) / (scale or 1.0)


def _causes(sources: list[Source], first_divergence: str) -> list[str]:
    """The weights that differ where the hidden states part, the largest difference first; or else the descriptions."""
    units = weights.units(sources[0].model)
    number = (
        0
        if first_divergence == "embedding"
        else int(first_divergence.split()[1]) + 1
        if first_divergence.startswith("layer")
        else -1
    )
    causes = []
    for name in units[number]:
        difference = _weight_difference(*(source.weights.get(name) for source in sources))
        if difference:
            causes.append((difference, name))
    if causes:
        return [f"{name}: differs by {size:.2e} of its largest value" for size, name in sorted(causes, reverse=True)]
    names = " ".join(_COMPUTED).split()
    models = [source.model for source in sources]
    fields = [
        f"{n}: {getattr(models[0], n)!r} in A, {getattr(models[1], n)!r} in B"
        for n in names
        if _field_differs(n, models)
    ]
    return fields or ["its weights and the descriptions are equal: the arrangement of a weight is read wrongly"]


def _field_differs(name: str, models: list[ModelConfig]) -> bool:
    return getattr(models[0], name) != getattr(models[1], name)


def _weight_difference(a: LazyTensor | None, b: LazyTensor | None) -> float:
    """Largest difference as a fraction of the largest value; infinite where one has no such weight."""
    if a is None or b is None:
        return float("inf")
    bits = a.load(), b.load()
    if a.dtype == b.dtype and same_bits(*bits):
        return 0.0
    values = as_float32(bits[0], a.dtype), as_float32(bits[1], b.dtype)
    return _largest(values[0] - values[1]) / (_largest(values[0]) or 1.0)


def _check_same_size(a: Source, b: Source) -> None:
    names = ("num_layers", "hidden_size", "ffn_hidden_size", "vocab_size")
    differing = [
        f"  {name}: {getattr(a.model, name):,} in {a.folder}, {getattr(b.model, name):,} in {b.folder}"
        for name in names
        if _field_differs(name, [a.model, b.model])
    ]
    if differing:
        raise CheckpointError("the two are models of different sizes:\n" + "\n".join(differing))


def _passages(sources: list[Source], texts: tuple[str, ...], max_tokens: int) -> list[list[int]]:
    path = next((source.tokenizer for source in sources if source.tokenizer is not None), None)
    if path is None:
        raise CheckpointError(
            f"{sources[0].folder}: neither it nor the other has a tokenizer\n  fix: give --tokenizer FILE"
        )
    tokenizer = load_tokenizer(path)
    passages, left = [], max_tokens
    for text in texts:
        tokens = tokenizer.encode(text)[: min(left, sources[0].model.seq_length)]
        if len(tokens) > 1:
            passages.append(tokens)
            left -= len(tokens)
    if not passages:
        raise CheckpointError("the text gives no two tokens to compare on\n  fix: give another --text FILE")
    return passages


def _compare_tokenizers(sources: list[Source], texts: tuple[str, ...]) -> str | None:
    """Where both sides bring a tokenizer: a text on which their ids differ. A Hugging Face folder answers as loaded."""
    encoders = [_encoder(source) for source in sources]
    if None in encoders:
        return None
    for text in texts:
        ids = [encode(text) for encode in encoders]
        if ids[0] != ids[1]:
            return f"give different ids on {text[:60]!r}"
    return None


def _encoder(source: Source):
    if source.tokenizer is None:
        return None
    if source.kind == HF and (source.folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(source.folder), trust_remote_code=False)
        return lambda text: loaded(text, add_special_tokens=False)["input_ids"]
    return load_tokenizer(source.tokenizer).encode


def _no_grad():
    import torch

    return torch.no_grad()


def _open_single():
    from megatron_sky.convert.compare.run_megatron import open_single

    return open_single()


def _runner(source: Source, single: Callable):
    if source.kind == HF:
        check_name(source.folder)
        from megatron_sky.convert.compare.run_transformers import TransformersRunner

        return TransformersRunner(source)
    from megatron_sky.convert.compare.run_megatron import MegatronRunner

    return MegatronRunner(source, single())
