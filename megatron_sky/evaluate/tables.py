"""Results as Markdown for people and CSV for programs. No torch."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict

from megatron_sky.evaluate.bootstrap import Interval
from megatron_sky.evaluate.results import LeakageResults, LossResults, Setting

Rows = tuple[list[str], list[list[str]]]
"""A table's headings and rows."""


def loss_markdown(results: LossResults) -> str:
    """Perplexities of all models over all domains, then normalised losses and bits per byte."""
    parts = [
        "## Perplexity",
        markdown_table(*loss_rows(results, "perplexity", 2)),
        "## Normalised loss, nats per reference token",
        markdown_table(*loss_rows(results, "normalised_loss", 4)),
        "## Bits per byte",
        markdown_table(*loss_rows(results, "bits_per_byte", 4)),
        setting_words(results.setting),
        _sizes(results),
        *_listed("Failed", results.failed),
        *_warnings(results.models),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def loss_csv(results: LossResults) -> str:
    """One line per model and domain, and one of domain `average`; the columns are LossFigures' fields."""
    rows = []
    for model in results.models:
        for domain, figures in [*model.domains.items(), ("average", model.average)]:
            record = model.model
            place = {"model": record.name, "step": record.step, "consumed_tokens": record.consumed_tokens}
            rows.append(place | {"domain": domain} | asdict(figures))
    return _csv(rows)


def leakage_markdown(results: LeakageResults) -> str:
    """The table of the report's section 5.2, the verdicts with their reasons, and the matched comparisons."""
    reasons = [
        f"- **{model.model.name}**, test split: {model.test_verdict.finding}. {model.test_verdict.reason}.\n"
        f"- **{model.model.name}**, train split: {model.train_verdict.finding}. {model.train_verdict.reason}."
        for model in results.models
    ]
    parts = [
        "## Leakage, loss in nats per token",
        markdown_table(*leakage_rows(results)),
        f"Brackets: {results.confidence:.0%} intervals, bootstrap over documents.",
        "\n".join(reasons),
        _matched_table(results),
        setting_words(results.setting) if results.setting else "",
        *_listed("Failed", results.failed),
        *_warnings(results.models),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def leakage_rows(results: LeakageResults) -> Rows:
    """Each model's losses, differences and findings, as the report's table 8."""
    head = ["model", "L_test", "L_train", "L_ref", "delta1", "delta2", "test split", "train split"]
    rows = []
    for model in results.models:
        c = model.comparisons[0]
        figures = [_number(x.value, 2) for x in (c.test, c.train, c.reference)]
        deltas = [_with_interval(c.delta1), _with_interval(c.delta2)]
        rows.append([model.model.name, *figures, *deltas, model.test_verdict.finding, model.train_verdict.finding])
    return head, rows


def leakage_csv(results: LeakageResults) -> str:
    """One line per model and comparison: each figure with the ends of its interval."""
    rows = []
    for model in results.models:
        for comparison in model.comparisons:
            row: dict[str, object] = {"model": model.model.name, "step": model.model.step}
            row |= {"basis": comparison.basis, "coverage": comparison.coverage}
            for name in ("test", "train", "reference", "delta1", "delta2"):
                value = getattr(comparison, name)
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            row |= {"test_verdict": model.test_verdict.finding, "train_verdict": model.train_verdict.finding}
            rows.append(row)
    return _csv(rows)


def loss_rows(results: LossResults, figure: str, digits: int) -> Rows:
    """A figure (a field of LossFigures) of each model on each domain, and over all documents, as table 6."""
    names = [domain.name for domain in results.domains]
    rows = [
        [
            model.model.name,
            *(_number(getattr(model.domains[name], figure), digits) for name in names),
            _number(getattr(model.average, figure), digits),
        ]
        for model in results.models
    ]
    return ["model", *names, "average"], rows


def _sizes(results: LossResults) -> str:
    head = ["domain", "documents", "left out as empty", "cut", "characters", "bytes"]
    first = results.models[0]
    rows = [
        [domain.name, *map(_count, (domain.documents, domain.empty, domain.cut)), *_lengths(first.domains[domain.name])]
        for domain in results.domains
    ]
    return markdown_table(head, rows)


def _lengths(figures) -> list[str]:
    return [_count(figures.characters), _count(figures.bytes)]


def setting_words(setting: Setting) -> str:
    """How the texts were scored, in a sentence."""
    words = [f"Context {setting.context:,} tokens"]
    words.append(f"text cut at {setting.max_characters:,} characters" if setting.max_characters else "whole documents")
    if setting.stride:
        words.append(f"longer documents by windows that advance {setting.stride:,} tokens")
    if setting.max_documents:
        words.append(f"the first {setting.max_documents:,} documents of each set")
    if setting.reference_tokenizer:
        words.append(f"reference tokens by {setting.reference_tokenizer} ({(setting.reference_sha256 or '')[:8]})")
    return ", ".join(words) + "."


def _matched_table(results: LeakageResults) -> str:
    head = ["model", "comparison", "covers", "L_test", "L_train", "L_ref", "delta1", "delta2"]
    rows = [
        [
            model.model.name,
            c.basis,
            f"{c.coverage:.0%}",
            *(_number(x.value, 3) for x in (c.test, c.train, c.reference)),
            _with_interval(c.delta1, 3),
            _with_interval(c.delta2, 3),
        ]
        for model in results.models
        for c in model.comparisons[1:]
    ]
    return "## At equal lengths, and token by token\n\n" + markdown_table(head, rows) if rows else ""


def _warnings(models: Sequence) -> list[str]:
    return _listed(
        "Warnings", [f"{model.model.name}: {warning}" for model in models for warning in model.model.warnings]
    )


def _listed(heading: str, lines: Sequence[str]) -> list[str]:
    return [f"## {heading}", "\n".join(f"- {line}" for line in lines)] if lines else []


def _with_interval(value: Interval, digits: int = 2) -> str:
    shown = f"{value.value:+.{digits}f}"
    return shown if value.low == value.high else f"{shown} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "inf"


def _count(value: int) -> str:
    return f"{value:,}"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its columns filled up so that it reads well as plain text."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def _csv(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
