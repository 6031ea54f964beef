"""The report's HTML: one file without scripts or links to others, which can be mailed and opens anywhere.

Whatever comes from the run passes through `html.escape`; pictures are embedded as images, so that nothing inside them
can touch the page.
"""

import base64
import time
from collections.abc import Sequence
from html import escape

from megatron_sky.config.units import format_count
from megatron_sky.monitor.console import format_seconds
from megatron_sky.report.figures import LegendEntry, Picture, draw_pictures
from megatron_sky.report.run import LAST_STEPS, DomainLoss, RunData, as_text

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
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .8rem; white-space: nowrap; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:last-child, th:last-child { padding-right: 0; }
td { white-space: nowrap; } .text { white-space: normal; overflow-wrap: anywhere; min-width: 14em; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.better { color: #1d7a4f; } .worse { color: #b3372f; }
.sample { margin: 0 0 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample b { color: var(--accent); font-weight: 600; } .tag { color: var(--muted); font-size: .8rem; }
details, details.card { margin-top: 12px; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; margin: 12px 0 0; }
.notes { color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 900px) { .pictures > *, .pictures > :nth-child(-n+2) { grid-column: 1 / -1; } }
@media (max-width: 600px) { main { padding: 20px 10px 32px; } .card { padding: 10px; }
  th, td { padding-right: 10px; } .text { min-width: 10em; }
  .figures { grid-template-columns: 1fr 1fr; gap: 8px; } .figures > div { padding: 10px; } dd { font-size: 1.1rem; } }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""


def render_html(run: RunData) -> str:
    """The whole page. Draws the pictures, which needs matplotlib."""
    sections = [
        _section("", _key_figures(run)),
        _section("", '<div class="pictures">' + "".join(map(_picture, draw_pictures(run))) + "</div>"),
        _section("Validation loss by domain, nats per token", _domains(run)),
        _section("Generated text", _samples(run)),
        _section("Training data", _sources(run)),
        _section("What happened", _events(run)),
        _section("The run", _facts(run) + _config(run)),
        _section("Notes", _notes(run)),
    ]
    title = escape(run.name)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} - training report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{title}</h1>\n<p class="subtitle">{escape(_subtitle(run))}</p>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, body: str) -> str:
    if not body:
        return ""
    return f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}\n{body}\n</section>"


def _subtitle(run: RunData) -> str:
    """When the run trained, from the first record to the last."""
    times = [each.time for each in (*run.metrics.train, *run.metrics.validation)]
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(each)) for each in (min(times), max(times)))
    return f"Training report, {first} to {last} UTC"


def _key_figures(run: RunData) -> str:
    figures = [*_loss_figures(run), *_size_figures(run), *_speed_figures(run)]
    if run.layouts:
        figures.append(("Layout" if len(run.layouts) == 1 else "Layouts", " \u2192 ".join(run.layouts), ""))
    return '<dl class="figures">' + "".join(_key_figure(*each) for each in figures) + "</dl>"


def _key_figure(name: str, value: str, note: str) -> str:
    note = f"<small>{escape(note)}</small>" if note else ""
    wide = ' class="wide"' if len(value) > 14 else ""
    return f"<div{wide}><dt>{escape(name)}</dt><dd>{escape(value)}{note}</dd></div>"


def _loss_figures(run: RunData) -> list[tuple[str, str, str]]:
    train, entropy, final = run.metrics.train, run.unigram_entropy, run.final_loss
    figures = []
    if train:
        number = min(LAST_STEPS, len(train))
        note = "last step" if number == 1 else f"mean of the last {number} steps"
        figures.append(("Training loss", "not finite" if final is None else f"{final:.4f}", note))
    if entropy is not None:
        note = (
            ""
            if final is None
            else f"the loss is {abs(entropy - final):.2f} {'under' if final < entropy else 'over'} it"
        )
        figures.append(("Unigram entropy", f"{entropy:.4f}", note))
    return figures


def _size_figures(run: RunData) -> list[tuple[str, str, str]]:
    if not run.metrics.train:
        return []
    last = run.metrics.train[-1]
    seconds = sum(each.step_seconds for each in run.metrics.train)
    return [
        ("Tokens", format_count(last.consumed_tokens), "consumed"),
        ("Steps", f"{last.step:,}", f"{last.global_batch_size:,} sequences each at the end"),
        ("Time in steps", format_seconds(seconds), ""),
    ]


def _speed_figures(run: RunData) -> list[tuple[str, str, str]]:
    rate, each_gpu = run.median("tokens_per_second"), run.median("tokens_per_second_per_gpu")
    tflops, mfu = run.median("tflops_per_gpu"), run.median("mfu")
    figures = []
    if rate is not None and each_gpu is not None:
        figures.append(("Tokens/s", f"{rate:,.0f}", f"median; {each_gpu:,.0f} per GPU or process"))
    if tflops is not None:
        figures.append(("TFLOP/s per GPU", f"{tflops:.4g}", "median, model FLOPs"))
    if mfu is not None:
        figures.append(("MFU", f"{mfu:.1%}", "median"))
    return figures


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
    dashed = ' class="dashed"' if entry.dashed else ""
    return f'<li><span{dashed} style="border-color:{entry.colour}"></span>{escape(entry.name)}</li>'


_CELL = {"n": "", "r": ' class="number"', "t": ' class="text"'}


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], kinds: str) -> str:
    """A table of cells that are HTML already; `kinds` has a letter per column: n(ame), r(ight: a number), t(ext)."""
    if not rows:
        return ""
    kind = [_CELL[letter] for letter in kinds]
    head = "".join(f"<th{each}>{escape(name)}</th>" for name, each in zip(headings, kind, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{each}>{cell}</td>" for cell, each in zip(row, kind, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _domains(run: RunData) -> str:
    headings = ("domain", "first loss", "last loss", "change", "unigram entropy", "tokens")
    return _table(headings, [_domain_row(each) for each in run.domains], "nrrrrr")


def _domain_row(domain: DomainLoss) -> list[str]:
    change = domain.last.lm_loss - domain.first.lm_loss
    kind = "better" if change < 0 else "worse" if change > 0 else ""
    return [
        escape(domain.name),
        f"{domain.first.lm_loss:.4f}",
        f"{domain.last.lm_loss:.4f}",
        f'<span class="{kind}">{change:+.4f}</span>',
        _loss(domain.unigram_entropy),
        f"{domain.last.tokens:,}",
    ]


def _samples(run: RunData) -> str:
    parts = []
    for sample in run.samples:
        text = sample.text.removeprefix(sample.prompt)
        parts.append(
            f'<div class="tag">{escape(sample.language)}</div>'
            f'<p class="sample" lang="{escape(sample.language)}"><b>{escape(sample.prompt)}</b>{escape(text)}</p>'
        )
    return f'<div class="card">{"".join(parts)}</div>' if parts else ""


def _sources(run: RunData) -> str:
    usage = run.usage
    rows = []
    for each in run.sources:
        used, epochs = usage.get(each.name, (None, None))
        tokens = ["-" if count is None else f"{count:,}" for count in (each.tokens, used)]
        turns = "-" if epochs is None else f"{epochs:.2f}"
        rows.append([escape(each.name), escape(each.weight), *tokens, turns, _loss(each.unigram_entropy)])
    return _table(["source", "weight", "tokens", "used", "epochs", "unigram entropy"], rows, "nrrrrr")


def _events(run: RunData) -> str:
    rows = []
    for each in run.metrics.events:
        if each.event in ("data", "sources"):
            continue  # have a table of their own
        rest = {name: value for name, value in each.fields.items() if name != "step"}
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(each.time))
        rows.append([when, escape(each.event), escape(as_text(each.fields.get("step"))), escape(as_text(rest))])
    table = _table(["time (UTC)", "event", "step", "details"], rows, "nnrt")
    return f"<details><summary>{len(rows)} events</summary>{table}</details>" if len(rows) > 20 else table


def _flat_facts(facts: dict[str, object]) -> list[tuple[str, object]]:
    """run.json as rows: each attempt by its number and start, a row for each thing it says."""
    rows: list[tuple[str, object]] = []
    for name, value in facts.items():
        if name != "attempts" or not isinstance(value, list):
            rows.append((str(name), value))
            continue
        for number, attempt in enumerate(value, 1):
            said = attempt if isinstance(attempt, dict) else {"": attempt}
            rows += [(f"attempt {number}: {str(key).replace('_', ' ')}", each) for key, each in said.items()]
    return rows


def _facts(run: RunData) -> str:
    rows = [[escape(name), escape(as_text(value))] for name, value in _flat_facts(run.facts)]
    return _table(["fact", "value"], rows, "nt")


def _config(run: RunData) -> str:
    if run.config is None:
        return ""
    summary = "<summary>The resolved recipe (config.yaml)</summary>"
    return f'<details class="card">{summary}<pre>{escape(run.config)}</pre></details>'


def _notes(run: RunData) -> str:
    notes = "".join(f"<li>{escape(each)}</li>" for each in run.notes)
    return f'<ul class="notes">{notes}</ul>' if notes else ""


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
