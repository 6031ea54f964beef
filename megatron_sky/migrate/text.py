"""A translation for people: the recipe as YAML, and the list of what became of each argument."""

import os
import re
import shlex
from collections.abc import Sequence

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.migrate.limits import MAX_BYTES, check_size
from megatron_sky.migrate.shell import Script, read_script
from megatron_sky.migrate.translation import Translation


def read_arguments(given: Sequence[str]) -> Script:
    """A script's file with its own arguments after it, or the arguments themselves, as words or as one quoted line.

    Raises ConfigError where no argument is found.
    """
    is_file = os.path.isfile(given[0])  # of a whole line of arguments too, which pathlib finds too long for a name
    text = given[0] if len(given) == 1 else shlex.join(given)
    if is_file:
        check_size(os.path.getsize(given[0]))
        with open(given[0], "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8", "replace")
    script = read_script(text, given[1:] if is_file else ())
    if not script.words:
        rule = "starts no command with --arguments" if is_file else "is no file, and no --arguments are given"
        rule += "".join(f"\n      {note}" for note in [*map(_shown, script.notes), *_lines_left(text)])
        fix = "give a launch script, or Megatron-LM's arguments themselves, as --num-layers 32 ..."
        raise ConfigError(Problem(given[0], rule, fix))
    return script


def _lines_left(text: str) -> list[str]:
    """The first lines of a script that look like the start of a training."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    starts = [
        entry for entry in lines if re.search(r"\.(py|sh)\b|\s--\w|\btorchrun\b", entry[1]) and entry[1][:1] != "#"
    ]
    listed = [f"line {number} is not run, or has no --arguments: {_shown(line[:80])}" for number, line in starts[:5]]
    return listed + [f"nor are {len(starts) - 5} more lines like these"] * (len(starts) > 5)


def recipe_text(translation: Translation, source: str) -> str:
    """The recipe as YAML, with what is still to be given as comments at its top. `source`: what it is made from."""
    from megatron_sky.config import strict_yaml

    lines = [_comment(f"From {source}")]
    lines += [_comment(f"TO GIVE: {text}") for text in translation.to_give]
    lines += [_comment(f"MAY LACK: {text}") for text in translation.open_words]
    return "\n".join(lines) + "\n" + strict_yaml.dump(translation.recipe)


def _comment(text: str) -> str:
    """One line of YAML, whatever signs the text has."""
    return f"# {_shown(text)}"


def _shown(text: str) -> str:
    """On one line of a terminal or a file: control characters and line separators escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def report_lines(translation: Translation, notes: Sequence[str] = ()) -> list[str]:
    """What was mapped, what has no effect here, what has no counterpart, and how the job would be sent.

    `notes`: what is not followed of a script.
    """
    parts = (
        ("mapped", translation.mapped),
        ("no effect here", translation.no_effect),
        ("no counterpart", translation.no_counterpart),
        ("still to give", translation.to_give),
        ("may hold more arguments", translation.open_words),
        ("not followed in the script", notes),
    )
    lines = [
        line
        for title, entries in parts
        if entries
        for line in (f"{title} ({len(entries)}):", *(f"  {_shown(x)}" for x in entries))
    ]
    unset = sorted(set(re.findall(r"\$\{(\w+)\}", str(translation.recipe))))
    if unset:
        lines.append(f"set in the environment before training: {', '.join(unset)}")
    if translation.nodes or translation.gpus_per_node:
        options = f"--nodes {translation.nodes or 1} --gpus-per-node {translation.gpus_per_node or 8}"
        lines.append(f"the same job: megatron-sky slurm submit RECIPE {options}")
    return lines
