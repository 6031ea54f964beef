"""run folders -> a page, whole or not at all: every file is written beside its place, then renamed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from megatron_sky.errors import ConfigError, Problem, RunError
from megatron_sky.files import real_path, write_bytes, write_text
from megatron_sky.report.comparison import describe_comparison, named_apart
from megatron_sky.report.content import Document, Pictures
from megatron_sky.report.evaluations import load_evaluations
from megatron_sky.report.markdown import render_markdown
from megatron_sky.report.one_run import describe_run
from megatron_sky.report.page import render_html
from megatron_sky.report.run import load_run

PageFormat = Literal["html", "md"]
FORMATS: tuple[PageFormat, ...] = get_args(PageFormat)


def build_report(
    *run_dirs: Path, out: Path | None = None, evals: Sequence[Path] = (), page_format: PageFormat = "html"
) -> Path:
    """Write the report of a run (finished or still going), or of several laid over each other, and return its path.

    By default it is `report.html` (or `.md`) in the run's folder, for several runs `comparison.html` in the first
    one's. `evals` are result files of `megatron-sky eval` to show beside those in the runs' `eval` folders. Markdown
    has its pictures in a folder beside it.

    Raises RunError when a folder holds no training or validation record yet, or the page can't be written, ConfigError
    when a folder is given twice.
    """
    folders = [Path(run_dir) for run_dir in run_dirs]
    _check_different(folders)
    runs = named_apart([load_run(folder) for folder in folders], folders)
    evaluations = load_evaluations(folders, [Path(path) for path in evals])
    name = "report" if len(runs) == 1 else "comparison"
    path = folders[0] / f"{name}.{page_format}" if out is None else Path(out)
    document = describe_run(runs[0], evaluations) if len(runs) == 1 else describe_comparison(runs, evaluations)
    if page_format == "md":
        _write_markdown(document, path)
    else:
        _write(path, render_html(document))
    return path


def _check_different(folders: Sequence[Path]) -> None:
    resolved = [real_path(folder) for folder in folders]
    twice = [str(folder) for number, folder in enumerate(folders) if resolved[number] in resolved[:number]]
    if twice:
        raise ConfigError(Problem("RUN", "is given twice", "give each run folder once", ", ".join(twice)))


def _write_markdown(document: Document, path: Path) -> None:
    pictures = path.with_name(f"{path.stem}_pictures")
    for section in document.sections:
        for block in section.blocks:
            for picture in block.pictures if isinstance(block, Pictures) else ():
                _write(pictures / f"{picture.file_name}.svg", picture.svg)
    _write(path, render_markdown(document, pictures.name))


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content) if isinstance(content, bytes) else write_text(path, content)
    except OSError as error:
        raise RunError(
            f"{path}: can't be written ({error.strerror}).\n  fix: choose another file with --out"
        ) from error
