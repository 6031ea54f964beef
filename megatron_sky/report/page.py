"""A report as HTML: one file without scripts or links to others, which can be mailed and opens anywhere.

Whatever comes from a run passes through `html.escape`; pictures are embedded as images, so that nothing inside them
can touch the page.
"""

import base64
from html import escape

from megatron_sky.report.content import (
    Block,
    Cell,
    Change,
    Code,
    Document,
    Folded,
    KeyFigure,
    KeyFigures,
    LegendEntry,
    Notes,
    Picture,
    Pictures,
    Samples,
    Section,
    Table,
)

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #616e7c; --line: #e4e7eb; --accent: #2563a8; }
* { box-sizing: border-box; }
body { margin: 0; background: #f7f8fa; color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
    "Noto Sans CJK SC", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 36px 0 12px; }
h3 { font-size: .95rem; margin: 0 0 6px; }
.subtitle { color: var(--muted); margin: 4px 0 24px; }
.card, .figures > div { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.figures { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 0; }
.figures > div { padding: 12px 14px; }
dt { color: var(--muted); font-size: .8rem; }
dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dd small { display: block; font-size: .75rem; font-weight: 400; color: var(--muted); }
.figures > .wide { grid-column: 1 / -1; }
.wide dd { font-size: 1rem; }
.pictures { display: grid; gap: 20px; margin-top: 20px; grid-template-columns: repeat(6, 1fr); }
.pictures > * { grid-column: span 2; } .pictures > :nth-child(-n+2) { grid-column: span 3; }
.card { margin: 0; padding: 16px; min-width: 0; }
.card img { display: block; width: 100%; height: auto; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0 0; padding: 0;
  font-size: .82rem; color: var(--muted); }
.legend li { overflow-wrap: anywhere; }
.legend span { display: inline-block; width: 18px; margin-right: 6px; vertical-align: middle; border-top: 3px solid; }
.legend .dashed { border-top-style: dashed; border-top-width: 2px; }
.legend .dotted { border-top-style: dotted; border-top-width: 2px; } .legend .area { border-top-width: 11px; }
.pictures.pairs > * { grid-column: span 3; } .scroll + .scroll { margin-top: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .8rem; white-space: nowrap; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:last-child, th:last-child { padding-right: 0; }
td { white-space: nowrap; } .text { white-space: normal; overflow-wrap: anywhere; min-width: 14em; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.number + :not(.number) { padding-left: 14px; }
.better { color: #1d7a4f; } .worse { color: #b3372f; }
.sample { margin: 0 0 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample b { color: var(--accent); font-weight: 600; } .tag { color: var(--muted); font-size: .8rem; }
details, details.card { margin-top: 12px; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; margin: 12px 0 0; }
.notes { color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }
@media screen and (max-width: 900px) { .pictures > *, .pictures > :nth-child(-n+2) { grid-column: 1 / -1; }
  .pictures.pairs > * { grid-column: 1 / -1; } }
@media screen and (max-width: 600px) { main { padding: 20px 10px 32px; } .card { padding: 10px; }
  table { font-size: .85rem; } th, td { padding-right: 8px; } .text { min-width: 10em; }
  th, th.number { white-space: normal; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7em; }
  .number + :not(.number) { padding-left: 0; }
  .figures { grid-template-columns: 1fr 1fr; gap: 8px; } .figures > div { padding: 10px; } dd { font-size: 1.1rem; } }
@media print { html { font-size: 11px; } body { background: #fff; } .card { break-inside: avoid; }
  .pictures { gap: 12px; } .pictures > * { grid-column: span 3; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } td, th { white-space: normal; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; } details.card { break-inside: auto; } }
"""


def render_html(document: Document) -> str:
    """The whole page."""
    title = escape(document.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} - {escape(document.kind)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{title}</h1>\n<p class="subtitle">{escape(document.subtitle)}</p>\n'
        + "\n".join(_section(section) for section in document.sections if section.blocks)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.heading)}</h2>" if section.heading else ""
    return f"<section>{heading}\n{''.join(map(_block, section.blocks))}\n</section>"


def _block(block: Block) -> str:
    return _WRITERS[type(block)](block)


def _key_figures(block: KeyFigures) -> str:
    return '<dl class="figures">' + "".join(map(_key_figure, block.figures)) + "</dl>"


def _key_figure(figure: KeyFigure) -> str:
    note = f"<small>{escape(figure.note)}</small>" if figure.note else ""
    wide = ' class="wide"' if len(figure.value) > 14 else ""
    return f"<div{wide}><dt>{escape(figure.name)}</dt><dd>{escape(figure.value)}{note}</dd></div>"


def _pictures(block: Pictures) -> str:
    layout = "" if block.layout == "lead" else f" {block.layout}"
    return f'<div class="pictures{layout}">' + "".join(map(_picture, block.pictures)) + "</div>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode()
    legend = "".join(map(_legend_entry, picture.legend))
    return (
        f'<figure class="card"><h3>{escape(picture.title)}</h3>'
        f'<img alt="{escape(picture.description)}" src="data:image/svg+xml;base64,{data}">'
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + "</figure>"
    )


def _legend_entry(entry: LegendEntry) -> str:
    line = "" if entry.line == "solid" else f' class="{entry.line}"'
    return f'<li><span{line} style="border-color:{entry.colour}"></span>{escape(entry.name)}</li>'


_CELL = {"n": "", "r": ' class="number"', "t": ' class="text"'}


def _table(table: Table) -> str:
    kind = [_CELL[letter] for letter in table.kinds]
    caption = f"<h3>{escape(table.caption)}</h3>" if table.caption else ""
    head = "".join(f"<th{each}>{escape(name)}</th>" for name, each in zip(table.headings, kind, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{each}>{_cell(cell)}</td>" for cell, each in zip(row, kind, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="card scroll">{caption}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Change):
        return escape(cell)
    kind = "better" if cell.value < 0 else "worse" if cell.value > 0 else ""
    return f'<span class="{kind}">{cell.text}</span>'


def _folded(block: Folded) -> str:
    return f"<details><summary>{escape(block.summary)}</summary>{_table(block.table)}</details>"


def _code(block: Code) -> str:
    summary = f"<summary>{escape(block.summary)}</summary>"
    return f'<details class="card">{summary}<pre>{escape(block.text)}</pre></details>'


def _samples(block: Samples) -> str:
    parts = []
    for sample in block.samples:
        text = sample.text.removeprefix(sample.prompt)
        parts.append(
            f'<div class="tag">{escape(sample.language)}</div>'
            f'<p class="sample" lang="{escape(sample.language)}"><b>{escape(sample.prompt)}</b>{escape(text)}</p>'
        )
    return f'<div class="card">{"".join(parts)}</div>'


def _notes(block: Notes) -> str:
    lines = "".join(f"<li>{escape(each)}</li>" for each in block.notes)
    return f'<ul class="notes">{lines}</ul>'


_WRITERS = {
    KeyFigures: _key_figures,
    Pictures: _pictures,
    Table: _table,
    Folded: _folded,
    Code: _code,
    Samples: _samples,
    Notes: _notes,
}
