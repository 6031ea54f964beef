"""run folder -> report.html, whole or not at all: written beside its place, then renamed."""

import os
import tempfile
from pathlib import Path

from megatron_sky.errors import RunError
from megatron_sky.report.page import render_html
from megatron_sky.report.run import load_run


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run (finished or still going) and return its path, `<run_dir>/report.html` by default.

    Raises RunError when the folder holds no training or validation record yet, or the page can't be written.
    """
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    _write_atomically(path, render_html(load_run(Path(run_dir))))
    return path


def _write_atomically(path: Path, text: str) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".report_", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # a temporary file is private; a report is for colleagues
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path}: can't be written ({error.strerror}).\n  mend: choose another file with --out"
        ) from error
