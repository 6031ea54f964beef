"""`megatron-sky from-args` and `from-nemo`: a Megatron-LM launch script, or a NeMo configuration, as a recipe."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

_Out = Annotated[Path | None, typer.Option(help="Recipe to write; default: print it.")]
_SameOrder = Annotated[
    bool,
    typer.Option(
        "--same-order",
        help="The same samples in the same order, and so the same losses: data.sampling=megatron and --split.",
    ),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]


def from_args(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT [ARGS...] | ARGUMENTS...",
            help="Launch script (with its $1, $2 ...), or Megatron-LM's arguments, as words or as one quoted line.",
        ),
    ],
    out: _Out = None,
    same_order: _SameOrder = False,
    megatron: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Version of megatron-core beside the script, as 0.16.1: what an argument means may depend on it.",
        ),
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Write the recipe that trains what a Megatron-LM script trains, and say what became of each argument."""
    from megatron_sky.errors import ConfigError, Problem
    from megatron_sky.migrate.readings import translate_script
    from megatron_sky.migrate.text import read_arguments, recipe_text, report_lines

    _check_free(out, overwrite)
    if megatron is not None and not re.fullmatch(r"(core_)?v?\d+\.\d+[\w.]*", megatron):
        raise ConfigError(Problem(f"--megatron {megatron}", "is no version", "give one as 0.16.1 or core_v0.19.0"))
    script = read_arguments(arguments)
    translation = translate_script(script, same_order=same_order, megatron=megatron)
    source = Path(arguments[0]).name if os.path.isfile(arguments[0]) else "given on the command line"
    text = recipe_text(translation, f"Megatron-LM's arguments, {source}: megatron-sky from-args")
    _write(out, text, report_lines(translation, script.notes))


def from_nemo(
    configuration: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_CONFIG", help="A Megatron Bridge checkpoint's run_config.yaml, or a NeMo 2 recipe's YAML."
        ),
    ],
    out: _Out = None,
    same_order: _SameOrder = False,
    overwrite: _Overwrite = False,
) -> None:
    """Write the recipe that trains what a Megatron Bridge or NeMo 2 configuration trains, and say what became of each
    key."""
    from megatron_sky.migrate.nemo import read_configuration, translate_configuration
    from megatron_sky.migrate.text import recipe_text, report_lines

    _check_free(out, overwrite)
    tree = read_configuration(configuration)
    translation = translate_configuration(tree, name=str(configuration), same_order=same_order)
    text = recipe_text(translation, f"the configuration {configuration.name}: megatron-sky from-nemo")
    _write(out, text, report_lines(translation))


def _check_free(out: Path | None, overwrite: bool) -> None:
    from megatron_sky.errors import ConfigError, Problem

    if out is not None and out.exists() and not overwrite:
        raise ConfigError(Problem(f"--out {out}", "is there already", "give --overwrite, or another name"))


def _write(out: Path | None, text: str, report: list[str]) -> None:
    """The recipe to its file, or printed with the report beside it on standard error."""
    from megatron_sky.files import write_text

    if out is None:
        print(text)
    else:
        write_text(out, text)
    for line in report:
        print(line, file=sys.stderr if out is None else sys.stdout)
    if out is not None:
        print(f"{out} written")
