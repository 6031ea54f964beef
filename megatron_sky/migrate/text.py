"""A translation for people: the recipe as YAML, and the list of what became of each argument."""

import os
import re
import shlex
from collections.abc import Sequence

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.migrate.shell import Script, read_script
from megatron_sky.migrate.translation import Translation
from megatron_sky.migrate.tree import MAX_BYTES


def read_arguments(given: Sequence[str]) -> Script:
    """A script's file with its own arguments after it, or the arguments themselves, as words or as one quoted line.

    Raises ConfigError where no argument is found.
    """
    is_file = os.path.isfile(given[0])  # of a whole line of arguments too, which pathlib finds too long for a name
    if is_file:
        with open(given[0], "rb") as file:  # a byte more than is read, so that a larger file is refused
            script = read_script(file.read(MAX_BYTES + 1).decode("utf-8", "replace"), given[1:])
    else:
        script = read_script(given[0] if len(given) == 1 else shlex.join(given))
    if not script.words:
        rule = "starts no command with --arguments" if is_file else "is no file, and no --arguments are given"
        rule += "".join(f"\n      {note}" for note in script.notes)
        fix = "give a launch script, or Megatron-LM's arguments themselves, as --num-layers 32 ..."
        raise ConfigError(Problem(given[0], rule, fix))
    return script


def recipe_text(translation: Translation, source: str) -> str:
    """The recipe as YAML, with what is still to be given as comments at its top."""
    from megatron_sky.config import strict_yaml

    lines = [_comment(f"From Megatron-LM's arguments, {source}: megatron-sky from-args")]
    lines += [_comment(f"TO GIVE: {text}") for text in translation.to_give]
    return "\n".join(lines) + "\n" + strict_yaml.dump(translation.recipe)


def _comment(text: str) -> str:
    """One line of YAML, whatever signs the text has."""
    return "# " + "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def report_lines(translation: Translation, script: Script) -> list[str]:
    """What was mapped, what has no effect here, what has no counterpart, and how the job would be sent."""
    parts = (
        ("mapped", translation.mapped),
        ("no effect here", translation.no_effect),
        ("no counterpart", translation.no_counterpart),
        ("still to give", translation.to_give),
        ("not followed in the script", script.notes),
    )
    lines = [
        line for title, found in parts if found for line in (f"{title} ({len(found)}):", *(f"  {x}" for x in found))
    ]
    unset = sorted(set(re.findall(r"\$\{(\w+)\}", str(translation.recipe))))
    if unset:
        lines.append(f"set in the environment before training: {', '.join(unset)}")
    if translation.nodes or translation.gpus_per_node:
        options = f"--nodes {translation.nodes or 1} --gpus-per-node {translation.gpus_per_node or 8}"
        lines.append(f"the same job: megatron-sky slurm submit RECIPE {options}")
    return lines
