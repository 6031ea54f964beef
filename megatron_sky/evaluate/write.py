"""Result files of a folder, and the table for the screen."""

from pathlib import Path

from megatron_sky.evaluate import tables
from megatron_sky.evaluate.results import LeakageResults, LossResults, write_bytes, write_json, write_text


def write_loss(found: LossResults, out: Path | None) -> str:
    """Writes loss.json, .csv, .md and .png into `out`, if given; returns the Markdown."""
    words = tables.loss_markdown(found)
    if out is not None:
        from megatron_sky.evaluate.picture import loss_png

        _write(found, out, words, tables.loss_csv(found), loss_png(found))
    return words


def write_leakage(found: LeakageResults, out: Path | None) -> str:
    """Writes leakage.json, .csv, .md and .png into `out`, if given; returns the Markdown."""
    words = tables.leakage_markdown(found)
    if out is not None:
        from megatron_sky.evaluate.picture import leakage_png

        _write(found, out, words, tables.leakage_csv(found), leakage_png(found))
    return words


def _write(found: LossResults | LeakageResults, out: Path, words: str, rows: str, picture: bytes) -> None:
    write_json(found, out)
    write_text(out / f"{found.kind}.csv", rows)
    write_text(out / f"{found.kind}.md", words)
    write_bytes(out / f"{found.kind}.png", picture)
