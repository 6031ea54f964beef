"""The model card (README.md) of a released checkpoint: what it is, what it saw, how to load it, its hashes."""

from dataclasses import dataclass

import yaml

from megatron_sky.checkpoint.store import FileRecord
from megatron_sky.config import Config
from megatron_sky.config.units import format_count
from megatron_sky.model.flops import num_parameters


@dataclass(frozen=True)
class Facts:
    """What a card says."""

    name: str
    step: int
    consumed_tokens: int
    layout: str
    config: Config
    tokens_per_source: dict[str, int]
    validation: dict[str, tuple[float, int]]
    """Set -> (loss in nats per token, step it was taken at)."""


def build_card(facts: Facts, files: dict[str, FileRecord]) -> str:
    """The card's Markdown. `files`: the weight files with their SHA-256, as the Hub shows it."""
    model = facts.config.model
    head = yaml.safe_dump({"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["megatron-sky"]})
    sections = [
        f"---\n{head}---\n\n# {facts.name}",
        f"An intermediate checkpoint of a pretraining run: {facts.consumed_tokens:,} tokens "
        f"({format_count(facts.consumed_tokens)}), step {facts.step:,}. {num_parameters(model):,} parameters, "
        f"{model.num_layers} layers, hidden size {model.hidden_size:,}, vocabulary {model.vocab_size:,}, context "
        f"{model.seq_length:,}. Every tensor was compared with the training checkpoint's as it was written.",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\nmodel = AutoModelForCausalLM.from_pretrained("PATH")\n```',
        _sources(facts),
        _validation(facts),
        f"## Recipe\n\nTrained as {facts.layout}.\n\n```yaml\n{_recipe(facts.config)}```",
        _hashes(files),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _sources(facts: Facts) -> str:
    if not facts.tokens_per_source:
        return ""
    total = sum(facts.tokens_per_source.values()) or 1
    rows = [f"| {name} | {count:,} | {count / total:.1%} |" for name, count in facts.tokens_per_source.items()]
    return "\n".join(["## Data seen so far", "", "| source | tokens | share |", "|---|---:|---:|", *rows])


def _validation(facts: Facts) -> str:
    if not facts.validation:
        return ""
    rows = [f"| {name} | {loss:.4f} | {step:,} |" for name, (loss, step) in facts.validation.items()]
    return "\n".join(["## Validation loss", "", "| set | nats per token | at step |", "|---|---:|---:|", *rows])


def _recipe(config: Config) -> str:
    """The recipe without the machine's own: paths and services."""
    included = {"model", "parallel", "precision", "optimizer", "schedule"} | (
        {"sessions"} if config.sessions else set()
    )
    content = config.model_dump(mode="json", include=included)
    content["train"] = config.train.model_dump(mode="json", exclude={"run_dir", "num_threads"})
    content["data"] = {"train": [source.model_dump(mode="json", exclude={"path"}) for source in config.data.train]}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _hashes(files: dict[str, FileRecord]) -> str:
    rows = [f"| {name} | {record.size:,} | `{record.sha256}` |" for name, record in sorted(files.items())]
    return "\n".join(["## Files", "", "| file | bytes | SHA-256 |", "|---|---:|---|", *rows])
