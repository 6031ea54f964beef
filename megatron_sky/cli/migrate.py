"""`megatron-sky from-args`: a Megatron-LM launch script's arguments as a recipe."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer


def from_args(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT [ARGS...] | ARGUMENTS...",
            help="Launch script (with its $1, $2 ...), or Megatron-LM's arguments, as words or as one quoted line.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Recipe to write; default: print it.")] = None,
    same_order: Annotated[
        bool,
        typer.Option(
            "--same-order",
            help="The same samples in the same order, and so the same losses: data.sampling=megatron and --split.",
        ),
    ] = False,
    megatron: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Version of megatron-core beside the script, as 0.16.1: what an argument means may depend on it.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write the recipe that trains what a Megatron-LM script trains, and say what became of each argument."""
    from megatron_sky.errors import ConfigError, Problem
    from megatron_sky.files import write_text
    from megatron_sky.migrate.readings import translate_script
    from megatron_sky.migrate.text import read_arguments, recipe_text, report_lines

    if out is not None and out.exists() and not overwrite:
        raise ConfigError(Problem(f"--out {out}", "is there already", "give --overwrite, or another name"))
    if megatron is not None and not re.fullmatch(r"(core_)?v?\d+\.\d+[\w.]*", megatron):
        raise ConfigError(Problem(f"--megatron {megatron}", "is no version", "give one as 0.16.1 or core_v0.19.0"))
    script = read_arguments(arguments)
    translation = translate_script(script, same_order=same_order, megatron=megatron)
    source = Path(arguments[0]).name if os.path.isfile(arguments[0]) else "given on the command line"
    text = recipe_text(translation, source)
    if out is None:
        print(text)
    else:
        write_text(out, text)
    for line in report_lines(translation, script):
        print(line, file=sys.stderr if out is None else sys.stdout)
    if out is not None:
        print(f"{out} written")
