"""`finetune.epochs` as train.tokens: rows of packed samples are counted by the sizes of their mask files."""

import os

from megatron_sky.config.sections.base import expand_variables
from megatron_sky.config.units import parse_count
from megatron_sky.errors import Problem

MASK_HEADER_BYTES = 32
"""Of a mask file (docs/formats.md); behind it stands a byte for each token."""


def fill_from_epochs(tree: dict) -> list[Problem]:
    """Sets train.tokens of a recipe, as its files give it, where `finetune.epochs` is said.

    Whole steps, no more than the epochs give, and one at least. What of the recipe is no number or no list its sections
    tell of. Returns the problems of the data files; where they are missing a budget that was said stays.
    """
    names = ("finetune", "train", "data", "model")
    sections = {name: section for name in names if isinstance(section := tree.get(name), dict)}
    if len(sections) < len(names):
        return []
    epochs, train = sections["finetune"].get("epochs"), sections["train"]
    if epochs is None or tree.get("sessions"):
        return []
    try:
        epochs, batch = float(epochs), int(train["global_batch_size"])
        length = _count(sections["model"]["seq_length"])
        paths = [source["path"] for source in sections["data"]["train"]]
    except (KeyError, TypeError, ValueError):
        return []
    rows, problems = 0, []
    for path in paths:
        try:
            size = os.stat(_mask_of(str(path))).st_size
            rows += (size - MASK_HEADER_BYTES) // length
        except (OSError, ValueError) as error:
            rule = f"finetune.epochs counts the packed samples of data.train: {error}"
            fix = "make them with `megatron-sky data chat`, or set train.tokens instead"
            problems.append(Problem("finetune.epochs", rule, fix, epochs))
    if problems:
        return problems if train.get("tokens") is None else []
    if epochs > 0 and batch > 0:
        train["tokens"] = max(1, int(epochs * rows) // batch) * batch * length
    return []


def _count(given: object) -> int:
    count = given if isinstance(given, int) else parse_count(str(given))
    if count < 1:
        raise ValueError(f"{count} is no length")
    return count


def _mask_of(path: str) -> str:
    prefix = os.path.expanduser(expand_variables(path))
    return f"{prefix.removesuffix('.bin').removesuffix('.idx')}.mask"
