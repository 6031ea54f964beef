"""The page about a run: `build_report(run_dir)` turns a run folder into one self-contained report.html.

run.py reads the folder into a `RunData` and works out its figures, figures.py draws the pictures (matplotlib, imported
only when drawing), page.py writes the HTML, build.py puts the file in its place.
"""

from megatron_sky.report.build import build_report
from megatron_sky.report.page import render_html
from megatron_sky.report.run import RunData, load_run

__all__ = ["RunData", "build_report", "load_run", "render_html"]
