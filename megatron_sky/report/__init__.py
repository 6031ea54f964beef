"""The page about one run, or about several: `build_report(run_dir, ...)` -> one self-contained report.html.

run.py and history.py read a run folder into a `RunData`, evaluations.py the result files of `megatron-sky eval`;
drawing.py and figures.py draw the pictures (matplotlib, imported only then); one_run.py and comparison.py say what
stands in the report (content.py), page.py writes it as HTML, markdown.py as Markdown, build.py puts it in its place.
"""

from megatron_sky.report.build import FORMATS, build_report
from megatron_sky.report.run import RunData, load_run

__all__ = ["FORMATS", "RunData", "build_report", "load_run"]
