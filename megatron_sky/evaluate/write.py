"""Result files of a folder, written anew after each model, so that they hold what was scored whatever comes after."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_sky.distributed.launch import RankInfo
from megatron_sky.evaluate import tables
from megatron_sky.evaluate.metrics import DocumentLoss
from megatron_sky.evaluate.results import (
    LeakageResults,
    LossResults,
    check_writable,
    write_bytes,
    write_documents,
    write_json,
    write_text,
)


def check_out(out: Path | None) -> None:
    """Makes the folders of the results, if any are wanted, and tries them. Raises RunError."""
    if out is not None:
        check_writable(out, out / "documents")


def write_loss(results: LossResults, out: Path | None, documents: Sequence[DocumentLoss] = ()) -> None:
    """loss.json, .csv, .md and .png into `out`, if given, and the newest model's `documents`. Raises RunError."""
    if out is not None:
        from megatron_sky.evaluate.picture import loss_png

        words, rows = tables.loss_markdown(results), tables.loss_csv(results)
        _write(results, out, documents, prefix="", words=words, rows=rows, picture=loss_png(results))


def write_leakage(results: LeakageResults, out: Path | None, documents: Sequence[DocumentLoss] = ()) -> None:
    """leakage.json, .csv, .md and .png into `out`, if given, and the newest model's `documents`. Raises RunError."""
    if out is not None:
        from megatron_sky.evaluate.picture import leakage_png

        words, rows = tables.leakage_markdown(results), tables.leakage_csv(results)
        _write(results, out, documents, prefix="leakage_", words=words, rows=rows, picture=leakage_png(results))


@contextmanager
def print_partial_on_error(info: RankInfo, words: Callable[[], str]) -> Iterator[None]:
    """Where what is inside ends by an error, rank 0 prints `words()` first: what had been scored by then."""
    try:
        yield
    except BaseException:
        if info.rank == 0 and (text := words()):
            print(text, flush=True)
        raise


def _write(
    results: LossResults | LeakageResults,
    out: Path,
    documents: Sequence[DocumentLoss],
    *,
    prefix: str,
    words: str,
    rows: str,
    picture: bytes,
) -> None:
    if documents:
        write_documents(out, results.models[-1].model.name, documents, prefix)
    write_json(results, out)
    write_text(out / f"{results.kind}.csv", rows)
    write_text(out / f"{results.kind}.md", words)
    write_bytes(out / f"{results.kind}.png", picture)
