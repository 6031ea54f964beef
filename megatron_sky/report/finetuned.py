"""What the report says of a fine-tuning run: its held-out loss, its adapters' share, how far a preference has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_sky.config import load_config, strict_yaml
from megatron_sky.errors import ConfigError
from megatron_sky.model.flops import lora_parameters, num_parameters
from megatron_sky.monitor.metrics import ValidationRecord
from megatron_sky.report.content import KeyFigure


@dataclass(frozen=True)
class Finetuned:
    """How a run was fine-tuned. `adapters`: their parameters, of a model of `parameters`; None: all were trained."""

    base: str
    parameters: int
    adapters: int | None
    learns_preference: bool

    @property
    def unit(self) -> str:
        """What a loss is taken over."""
        return "pair" if self.learns_preference else "answers' token"


def read_finetuned(recipe: Path, text: str | None, notes: list[str]) -> Finetuned | None:
    """From a run's resolved recipe, whose `text` is read already; None where it is none of fine-tuning.

    One of fine-tuning that this version can't read is told in `notes`.
    """
    if text is None or not _tunes(text, recipe.name):
        return None
    try:
        config = load_config([recipe], keep_unset=True)
    except ConfigError as error:
        notes.append(f"{recipe.name}: can't be read as a recipe ({error})")
        return None
    tuning = config.finetune
    if tuning is None:
        return None
    adapters = None if tuning.lora is None else lora_parameters(config.model, tuning.lora)
    return Finetuned(tuning.base, num_parameters(config.model), adapters, tuning.dpo is not None)


def _tunes(text: str, name: str) -> bool:
    """Whether a recipe has a `finetune` section; what is no recipe has none."""
    try:
        content = strict_yaml.load(text, name)
    except (yaml.YAMLError, ValueError):
        return False
    return isinstance(content, dict) and content.get("finetune") is not None


def tuning_figures(finetuned: Finetuned | None, validation: Sequence[ValidationRecord]) -> list[KeyFigure]:
    """Key figures of fine-tuning; none of another run."""
    if finetuned is None:
        return []
    figures = _held_out(finetuned, validation)
    if finetuned.adapters is not None:
        share = finetuned.adapters / (finetuned.parameters + finetuned.adapters)
        figures.append(KeyFigure("Trained", f"{share:.2%}", f"of the parameters: {finetuned.adapters:,} of adapters"))
    else:
        figures.append(KeyFigure("Trained", "100%", f"of the parameters: {finetuned.parameters:,}"))
    told = [(record.step, record.tokens, record.preference) for record in validation if record.preference is not None]
    if told:
        (begin, _, first), (_, pairs, last) = told[0], told[-1]
        figures.append(
            KeyFigure("Reward margin", f"{last.margin:.3f}", f"held-out; {first.margin:.3f} at step {begin:,}")
        )
        figures.append(KeyFigure("Preference accuracy", f"{last.accuracy:.1%}", f"of {pairs:,} held-out pairs"))
    return figures


def _held_out(finetuned: Finetuned, validation: Sequence[ValidationRecord]) -> list[KeyFigure]:
    """The best mean over the validation sets, and the first."""
    by_step: dict[int, list[float]] = {}
    for record in validation:
        by_step.setdefault(record.step, []).append(record.lm_loss)
    means = {step: sum(losses) / len(losses) for step, losses in by_step.items()}
    if not means:
        return []
    best, first = min(means, key=lambda step: means[step]), min(means)
    name = "Held-out loss of pairs" if finetuned.learns_preference else "Held-out answer loss"
    note = f"nats per {finetuned.unit}, at step {best:,}; {means[first]:.4f} at step {first:,}"
    return [KeyFigure(name, f"{means[best]:.4f}", note)]
