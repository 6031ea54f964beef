"""A report as Markdown (GitHub's kind): tables, and pictures as SVG files in a folder beside it.

Whatever comes from a run is escaped, so that a name can neither end a table's cell nor become a link or HTML.
"""

import os
import re
from collections.abc import Callable, Sequence
from html import escape
from urllib.parse import quote

from megatron_sky.report.content import (
    Block,
    Cell,
    Change,
    Code,
    Document,
    Folded,
    KeyFigures,
    LegendEntry,
    Notes,
    Picture,
    Pictures,
    Samples,
    Table,
)
from megatron_sky.report.drawing import colour_name

_MARKUP = re.compile(r"([\\`*\[|~#$@]|(?<![^\W_])_|_(?![^\W_]))")  # a _ between letters has no effect


def render_markdown(document: Document, pictures: str) -> str:
    """The whole text; the pictures lie in the folder `pictures` beside it, under their file names."""
    parts = [f"# {_text(document.title)}", _text(document.subtitle)]
    for section in document.sections:
        if section.blocks:
            parts += [f"## {_text(section.heading)}"] if section.heading else []
            parts += [_block(block, pictures) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, folder: str) -> str:
    if isinstance(block, Pictures):
        return "\n\n".join(_picture(picture, folder) for picture in block.pictures)
    return _WRITERS[type(block)](block)


def _text(text: str) -> str:
    """One line of plain text: HTML and Markdown in it are shown as they stand."""
    return _MARKUP.sub(r"\\\1", escape(" ".join(text.split()), quote=False))


def _picture(picture: Picture, folder: str) -> str:
    image = f"![{_text(picture.description)}]({quote(os.fsencode(folder))}/{quote(picture.file_name)}.svg)"
    legend = [f"Lines: {'; '.join(map(_legend_entry, picture.legend))}."] if picture.legend else []
    return "\n\n".join([f"### {_text(picture.title)}", image, *legend])


def _legend_entry(entry: LegendEntry) -> str:
    line = "" if entry.line in ("solid", "area") else f", {entry.line}"
    return f"{_text(entry.name)} ({colour_name(entry.colour)}{line})"


def _key_figures(block: KeyFigures) -> str:
    rows = [[figure.name, figure.value, figure.note] for figure in block.figures]
    return _table(Table(["", "", ""], rows, "nrn"))


def _table(table: Table) -> str:
    caption = [f"### {_text(table.caption)}", ""] if table.caption else []
    rule = ["--:" if kind == "r" else ":--" for kind in table.kinds]
    return "\n".join([*caption, _row(table.headings), f"| {' | '.join(rule)} |", *map(_row, table.rows)])


def _row(cells: Sequence[Cell]) -> str:
    shown = [cell.text if isinstance(cell, Change) else _text(cell) for cell in cells]
    return f"| {' | '.join(shown)} |"


def _folded(block: Folded) -> str:
    return f"{_text(block.summary)}:\n\n{_table(block.table)}"


def _code(block: Code) -> str:
    longest = max((len(ticks) for ticks in re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{_text(block.summary)}:\n\n{fence}\n{block.text.rstrip()}\n{fence}"


def _samples(block: Samples) -> str:
    return "\n\n".join(
        f'{_text(sample.language)}, after "{_text(sample.prompt)}":\n\n{_quoted(sample.continuation)}'
        for sample in block.samples
    )


def _quoted(text: str) -> str:
    """Line by line."""
    return "\n".join(f"> {_text(line)}  " if line.strip() else ">" for line in text.splitlines() or [""])


def _notes(block: Notes) -> str:
    return "\n".join(f"- {_text(note)}" for note in block.notes)


_WRITERS: dict[type[Block], Callable[..., str]] = {
    KeyFigures: _key_figures,
    Table: _table,
    Folded: _folded,
    Code: _code,
    Samples: _samples,
    Notes: _notes,
}
