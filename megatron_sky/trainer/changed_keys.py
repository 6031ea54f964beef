"""What a resumed run makes of the keys of its recipe that were edited since its checkpoint was saved.

A key is refused, kept or applied. Refused is what the run can't go on with: another model (`check_same_model`), another
order of the samples (`data.sampling.run_plan`), other tokens in a source (`resume`). Kept is what counted at the run's
first step alone; it has no effect any more, which is said. Everything else is applied from the next step on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.config import Config
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.trainer.sessions import sessions_of

log = get_logger(__name__)
_WEIGHTS = "the run's weights were drawn at its first step"
_OWN = "the run goes on from its own checkpoint"
KEPT: Mapping[str, str] = {
    "model.preset": "it names the model's other fields, which are compared one by one",
    "model.init_std": _WEIGHTS,
    "precision.initial_loss_scale": "the loss scale goes on from the checkpoint's",
    "validation.at_start": "the run's first step is done",
    "checkpoint.init_from": _OWN,
    "checkpoint.start_over": _OWN,
}
"""Keys that count at a run's first step alone, with the reason. `train.seed` is one of them without dropout, and
what stands at sessions that are over."""


@dataclass(frozen=True)
class Changes:
    """`applied`: `key: old -> new`, from the next step on. `kept`: the same and why it has no effect."""

    applied: list[str]
    kept: list[str]


def find_changes(saved: Config, recipe: Config, consumed_samples: int) -> Changes:
    """The keys in which `recipe` is not the `saved` one of a checkpoint, but for those that were refused before.

    `consumed_samples`: where the checkpoint stands, by which sessions of the recipe are over or have begun.
    """
    past = _past_sessions(recipe, consumed_samples)
    old, new = values_by_key(saved), values_by_key(recipe)
    changes = Changes([], [])
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) == new.get(key):
            continue
        text = f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}"
        reason = _kept_because(key, saved, recipe) or next((past[part] for part in past if key.startswith(part)), None)
        if reason is None:
            changes.applied.append(text)
        else:
            changes.kept.append(f"{text} ({reason})")
    return changes


def tell(saved: Config, recipe: Config, *, checkpoint: str, consumed_samples: int) -> None:
    """Says what was edited since `checkpoint`, the name of a folder, was saved."""
    changes = find_changes(saved, recipe, consumed_samples)
    if changes.applied:
        log.info("edited since %s, and counts from here on: %s", checkpoint, "; ".join(changes.applied))
    for text in changes.kept:
        log.warning("edited since %s, and has no effect: %s", checkpoint, text)


def tell_of_tokenizer(folder: Path, now: Mapping[str, bytes]) -> None:
    """Says which of the tokenizer's files `now` are not those in the checkpoint `folder`, where it has any."""
    if tokenizer_files.find(folder) is None:
        return
    names = [name for name, content in now.items() if not _holds(folder / name, content)]
    if names:
        log.warning(
            "tokenizer.path: %s not what %s holds; checkpoints from here on hold what is there now; texts become other "
            "tokens if its vocabulary changed",
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}",
            folder.name,
        )


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _kept_because(key: str, saved: Config, recipe: Config) -> str | None:
    if key == "precision.initial_loss_scale" and recipe.precision.dtype == "fp16" != saved.precision.dtype:
        return None  # the checkpoint has no loss scale to go on from
    if key == "train.seed" and not (recipe.model.hidden_dropout or recipe.model.attention_dropout):
        return f"{_WEIGHTS}, and there is no dropout"
    return KEPT.get(key)


def _past_sessions(recipe: Config, consumed_samples: int) -> dict[str, str]:
    """Beginnings of keys that speak of what is past in the recipe's sessions, with the reason."""
    past = {}
    for session in sessions_of(recipe).every if recipe.sessions else ():
        if session.end_sample <= consumed_samples:
            past[f"sessions[{session.name}]."] = "the session is over"
        elif session.first_sample < consumed_samples:
            past[f"sessions[{session.name}].start"] = "the session has begun"
    return past


def values_by_key(config: Config) -> dict[str, object]:
    """Every value of a recipe by its dotted key, those of lists by their names: `data.train[en_web].weight`."""
    return dict(_flat("", config.model_dump(mode="json")))


def _flat(key: str, value: object):
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f"{key}.{name}" if key else name, part)
    elif isinstance(value, list) and value and all(isinstance(part, dict) and "name" in part for part in value):
        for part in value:
            yield from _flat(f"{key}[{part['name']}]", {name: each for name, each in part.items() if name != "name"})
    elif value is not None and value != []:
        yield key, value


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
