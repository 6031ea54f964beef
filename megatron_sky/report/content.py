"""What a report says, apart from how it is written: page.py makes HTML of it, markdown.py Markdown.

All texts are plain: whoever writes them out escapes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Line = Literal["solid", "dashed", "dotted", "area"]


@dataclass(frozen=True)
class LegendEntry:
    """A line of a picture's legend: what the line, or the area, of this colour is."""

    name: str
    colour: str
    line: Line = "solid"


@dataclass(frozen=True)
class Picture:
    """A picture and what stands around it. `file_name` has no ending; it is unique in a report."""

    file_name: str
    title: str
    description: str
    svg: bytes
    legend: list[LegendEntry]


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side: `pairs` is two in a row, `lead` two large ones and then three in a row."""

    pictures: list[Picture]
    layout: Literal["lead", "pairs"]


@dataclass(frozen=True)
class KeyFigure:
    """A number to be seen first, and what it was taken from."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """The figures at the head of a page."""

    figures: list[KeyFigure]


@dataclass(frozen=True)
class Change:
    """A cell: a difference of losses in nats, of which less is better."""

    value: float

    @property
    def text(self) -> str:
        return f"{self.value:+.4f}"

    @property
    def direction(self) -> Literal["better", "worse", ""]:
        return "better" if self.value < 0 else "worse" if self.value > 0 else ""


Cell = str | Change


@dataclass(frozen=True)
class Table:
    """A table; `kinds` has a letter per column: n(ame), r(ight: a number), t(ext)."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kinds: str
    caption: str = ""


@dataclass(frozen=True)
class Folded:
    """A long table that is opened by a click on its summary."""

    summary: str
    table: Table


@dataclass(frozen=True)
class Code:
    """A file's text as it stands, folded under its summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class Sample:
    """A generated text. `language` is a language tag such as en or zh."""

    language: str
    prompt: str
    text: str

    @property
    def continuation(self) -> str:
        """The text after the prompt."""
        return self.text.removeprefix(self.prompt)


@dataclass(frozen=True)
class Samples:
    """Generated texts."""

    samples: list[Sample]


@dataclass(frozen=True)
class Notes:
    """What the reader should know beside the figures, a line each."""

    notes: Sequence[str]


Block = KeyFigures | Pictures | Table | Folded | Code | Samples | Notes


@dataclass(frozen=True)
class Section:
    """Blocks under a heading (which may be empty); a section without blocks is left out."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    kind: str
    subtitle: str
    sections: Sequence[Section]


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], kinds: str, caption: str = "") -> list[Block]:
    """A table as the blocks of a section: none where it has no rows."""
    assert all(len(row) == len(headings) == len(kinds) for row in rows)
    return [Table(headings, rows, kinds, caption)] if rows else []
