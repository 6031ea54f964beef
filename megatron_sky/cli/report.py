"""`megatron-sky report`: runs as a page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are laid over each other.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; default: report.html in the run's folder, for several runs comparison.html in the "
            "first one's."
        ),
    ] = None,
    evals: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Result file of `megatron-sky eval`, beside those in the runs' eval folders."),
    ] = None,
    page_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="html, or md (pictures in a folder beside it); default: as --out ends, else html."
        ),
    ] = None,
) -> None:
    """Draw runs' losses, sessions, mixture, speed and evaluations into one self-contained HTML page."""
    from megatron_sky.errors import ConfigError, Problem
    from megatron_sky.report import FORMATS, build_report

    endings = {".md": "md", ".html": "html", ".htm": "html", "": "html"}
    if page_format is None and out is not None and out.suffix not in endings:
        fix = "end it in .html or .md, or say which with --format"
        raise ConfigError(Problem("--out", "a page is HTML or Markdown", fix, str(out)))
    named = page_format or ("html" if out is None else endings[out.suffix])
    known = next((each for each in FORMATS if each == named), None)
    if known is None:
        raise ConfigError(Problem("--format", f"must be one of {', '.join(FORMATS)}", value=named))
    print(build_report(*run_dirs, out=out, evals=evals or (), page_format=known))
