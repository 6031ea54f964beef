"""One pair out of several: the tokens are copied in each index's order, the index is shifted, the meta files are added
up."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path
from megatron_sky.data.tokens.mask import mask_path
from megatron_sky.data.tokens.meta import (
    KEPT_PASSED_OVER,
    DocumentCounts,
    FileCounts,
    FileRecord,
    Meta,
    ShardRecord,
    check_meta,
    meta_path,
    read_meta,
)
from megatron_sky.data.tokens.scan import describe
from megatron_sky.data.tokens.writer import IndexedWriter, is_cut_off
from megatron_sky.errors import DataError
from megatron_sky.log import get_logger

log = get_logger(__name__)


def merge(prefixes: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Meta | None:
    """Write the documents of all pairs, in the order given, to one pair.

    Returns:
        Its meta file; None where the pairs have none, and then none is written.

    Raises:
        DataError: a pair is damaged, or they differ in number format or tokenizer, or shards are among them and not
            all of their job, or the output is in the way.
    """
    assert prefixes
    if bin_path(out).exists() and not overwrite and not is_cut_off(out):
        raise _in_the_way(prefixes, out)
    if any(_same_pair(prefix, out) for prefix in prefixes):
        raise _input_and_output(out)
    if masked := [str(prefix) for prefix in prefixes if mask_path(prefix).exists()]:
        raise DataError(
            f"{', '.join(masked)}: packed samples with a mask can't be joined, each ends with a token of its own\n"
            "  fix: name them in data.train, each with its weight; or give `data chat` all files at once"
        )
    metas = _agreeing_metas(prefixes)
    _check_shards(prefixes, metas)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    dtype = _common_dtype(prefixes, metas)
    try:
        with IndexedWriter(out, dtype, describe=partial(_add_up, out, metas) if metas else None) as writer:
            for prefix in prefixes:
                with _open(prefix) as pair:
                    _tell_if_partial(pair)
                    writer.add_pair(pair)
            meta_path(out).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{out}: writing stopped ({error.strerror or error}); nothing is left of it") from error
    return writer.meta


def _in_the_way(prefixes: Sequence[str | Path], out: str | Path) -> DataError:
    if not meta_path(out).exists() and any(meta_path(prefix).exists() for prefix in prefixes):
        return DataError(
            f"{bin_path(out)} exists already, and without {meta_path(out).name}, as an interrupted merge leaves it\n"
            "  fix: merge again with --overwrite, or choose another name"
        )
    return DataError(f"{bin_path(out)} exists already\n  fix: choose another name, or allow replacing with --overwrite")


def pairs_in_folder(folder: str | Path, *, out: str | Path) -> list[str]:
    """The prefixes of all pairs in a folder, in alphabetical order, but for what an earlier merge left under `out`.

    Raises:
        DataError: there is none, or half of one, or `out` is a pair that was tokenized and no merge's.
    """
    names = {path.with_suffix("") for path in Path(folder).iterdir() if path.suffix in (".bin", ".idx")}
    for prefix in [prefix for prefix in names if _same_pair(prefix, out)]:
        meta = read_meta(prefix)
        if meta is not None and meta.job:
            raise _input_and_output(prefix)
        names.remove(prefix)
    if not names:
        raise DataError(f"{folder} holds no .bin/.idx pair")
    for prefix in names:
        for ending in (".bin", ".idx"):
            if not os.path.isfile(f"{prefix}{ending}"):
                raise DataError(f"{prefix}{ending} is missing, the other half of the pair is there")
    return sorted(map(str, names))


def _same_pair(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(bin_path(one)) == os.path.realpath(bin_path(other))


def _input_and_output(prefix: str | Path) -> DataError:
    return DataError(f"{prefix} is an input and the output\n  fix: choose another name for the output")


def _check_shards(prefixes: Sequence[str | Path], metas: Sequence[Meta]) -> None:
    """That the shards of a job are all there, once each. Pairs that are none may stand beside them."""
    jobs: dict[str, list[tuple[ShardRecord, str | Path]]] = {}
    for prefix, meta in zip(prefixes, metas, strict=bool(metas)):
        if meta.shard is not None:
            jobs.setdefault(meta.shard.whole, []).append((meta.shard, prefix))
    incomplete = [lack for lack in map(_what_is_missing, jobs.values()) if lack]
    if len(incomplete) == 1:
        raise DataError(f"{incomplete[0]}\n  fix: tokenize what is missing, then merge all parts")
    if incomplete:
        raise DataError(
            "these parts make up no job: they were tokenized from different lists of files or with other options\n"
            + "".join(f"  {lack}\n" for lack in incomplete)
            + "  fix: see that no file comes, goes or grows between two tasks, and do all parts again with --overwrite"
        )


def _what_is_missing(parts: Sequence[tuple[ShardRecord, str | Path]]) -> str:
    """In words, what the shards of one job lack; raises DataError where documents would be there twice."""
    first, named = parts[0]
    there: dict[int, str | Path] = {}
    for shard, prefix in parts:
        if shard.count != first.count or shard.index in there:
            raise DataError(
                f"{prefix} is part {shard.index} of {shard.count} of a job, {there.get(shard.index, named)} belongs to "
                f"the same job cut into {first.count}: documents would be there twice\n  fix: leave out one of them"
            )
        there[shard.index] = prefix
    missing = sorted(set(range(first.count)) - there.keys())
    return f"{named} is one of {first.count} parts, numbered from 0; missing: {_runs(missing)}" if missing else ""


def _runs(numbers: Sequence[int]) -> str:
    """Rising numbers in words, neighbours as `3-7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _open(prefix: str | Path) -> IndexedTokens:
    return IndexedTokens(prefix, allow_empty=True, any_order=True)


def _tell_if_partial(pair: IndexedTokens) -> None:
    held = bin_path(pair.prefix).stat().st_size // pair.dtype.itemsize
    if held != pair.num_tokens:
        log.warning(
            "%s: its index describes %s tokens, the .bin file holds %s; what the index describes is taken",
            pair.prefix, f"{pair.num_tokens:,}", f"{held:,}",
        )  # fmt: skip


def _common_dtype(prefixes: Sequence[str | Path], metas: Sequence[Meta]) -> np.dtype:
    """The number format that holds all pairs' ids.

    Tools differ in the one they choose for 65,500 to 65,535 tokens, so that pairs of one tokenizer may differ in it;
    that the tokenizer is one, only the meta files say.
    """
    dtypes: dict[np.dtype, str | Path] = {}
    for prefix in prefixes:
        with _open(prefix) as pair:
            if pair.dtype.kind not in "iu":
                raise DataError(f"{prefix}.idx: number format {pair.dtype.name} can't hold token ids")
            dtypes.setdefault(pair.dtype, prefix)
    if len(dtypes) > 1 and not metas:
        formats = ", ".join(f"{prefix}: {dtype.name}" for dtype, prefix in dtypes.items())
        raise DataError(
            f"the pairs differ in number format ({formats}), and without meta files nothing says that their tokenizer "
            "is one all the same\n"
            "  fix: give each a meta file with `megatron-sky data verify PAIR --tokenizer T --write-meta`, then merge"
        )
    return np.result_type(*dtypes)


def _agreeing_metas(prefixes: Sequence[str | Path]) -> list[Meta]:
    read = {prefix: read_meta(prefix) for prefix in prefixes}
    by_pair = {prefix: meta for prefix, meta in read.items() if meta is not None}
    absent = [prefix for prefix in read if prefix not in by_pair]
    if not by_pair:
        return []
    if absent:
        raise DataError(
            f"{meta_path(absent[0])} is missing, other pairs have theirs\n"
            f"  fix: `megatron-sky data verify {absent[0]} --tokenizer T --write-meta` writes it"
        )
    metas = list(by_pair.values())
    for prefix, meta in by_pair.items():
        with _open(prefix) as pair:
            check_meta(prefix, meta, pair)
        if meta.tokenizer.sha256 != metas[0].tokenizer.sha256:
            raise DataError(
                f"{meta_path(prefix)}: made with tokenizer {meta.tokenizer.name} ({meta.tokenizer.sha256[:12]}), the "
                f"first pair with {metas[0].tokenizer.name} ({metas[0].tokenizer.sha256[:12]})\n"
                "  fix: merge only pairs made with one tokenizer"
            )
        if meta.tokenizer.eod_id != metas[0].tokenizer.eod_id:
            raise DataError(
                f"{meta_path(prefix)}: the end-of-document id is {meta.tokenizer.eod_id}, the first pair's "
                f"{metas[0].tokenizer.eod_id}\n  fix: merge only pairs with one; tokenizer_config.json beside a "
                "tokenizer.json names it"
            )
    return metas


def _add_up_files(metas: Sequence[Meta]) -> FileCounts | None:
    """The parts of a job, each of which counts all of its files, are one job; None where a meta file does not say."""
    by_job = {meta.shard.whole if meta.shard else number: meta.files for number, meta in enumerate(metas)}
    jobs = [counts for counts in by_job.values() if counts is not None]
    if len(jobs) < len(by_job):
        return None
    by_reason: Counter[str] = Counter()
    paths = [file for counts in jobs for file in counts.passed_over_files]
    for counts in jobs:
        by_reason.update(counts.passed_over)
    return FileCounts(
        found=sum(counts.found for counts in jobs),
        read=sum(counts.read for counts in jobs),
        passed_over=dict(by_reason),
        passed_over_files=tuple(paths[:KEPT_PASSED_OVER]),
    )


def _add_up(out: str | Path, metas: Sequence[Meta], index: Path) -> Meta:
    rejected: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for meta in metas:
        rejected.update(meta.rejected)
        notes.update(meta.notes)
    sources: dict[str, FileRecord] = {}
    for record in (record for meta in metas for record in meta.sources):
        before = sources.get(record.path)
        sources[record.path] = record if before is None else replace(before, blocks=before.blocks + record.blocks)
    return describe(
        out,
        metas[0].tokenizer,
        append_eod=all(meta.append_eod for meta in metas),
        documents=DocumentCounts(
            read=sum(meta.documents.read for meta in metas),
            written=sum(meta.documents.written for meta in metas),
            empty=sum(meta.documents.empty for meta in metas),
            rejected=sum(meta.documents.rejected for meta in metas),
        ),
        rejected=dict(rejected),
        notes=dict(notes),
        sources=tuple(sources.values()),
        files=_add_up_files(metas),
        index=index,
    )
