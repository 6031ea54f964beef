"""A report as HTML: one file without scripts or links to others, which can be mailed and opens anywhere.

The template escapes whatever comes from a run; pictures are embedded as images, so that nothing inside them can touch
the page.
"""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.report.content import Document

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document) -> str:
    """The whole page."""
    from markupsafe import Markup

    style = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return _environment().get_template("page.html").render(document=document, style=style)


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    classes = {"n": "", "r": Markup(' class="number"'), "t": Markup(' class="text"')}
    environment.filters |= {
        "base64": lambda content: base64.b64encode(content).decode(),
        "cell_class": classes.__getitem__,
        "kind": lambda block: type(block).__name__,
    }
    return environment
