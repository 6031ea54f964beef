"""What a token file says of itself: `<prefix>.meta.json`, written beside the `.bin/.idx` pair.

Training compares it with the model and the files before the first step, and `verify` checks every word of it. Files
made by other tools have none; then nothing can be promised about their ids, and the loader checks each batch.
The hash of the tokens is kept per block of `HASH_BLOCK` bytes, so that files are hashed on all cores and a damaged
place is found without a second copy.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from megatron_sky.data.tokens.index_check import check_index_once
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.errors import DataError
from megatron_sky.files import hash_range, read_json, write_json
from megatron_sky.records import BadRecord, read_record

FORMAT_VERSION = 2
MASKED_VERSION = 3  # of a pair that has a mask file, which a program that knows none of it would train on without
HASH_BLOCK = 32 << 20  # bytes
KEPT_PASSED_OVER = 1000


@dataclass(frozen=True)
class FileRecord:
    """A file that was read: path as given, size in bytes, XXH3 of each 16 MiB (a shard has those that it read)."""

    path: str
    size: int
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the ids: file name, SHA-256 of the file, vocabulary size, end-of-document id."""

    name: str
    sha256: str
    vocab_size: int
    eod_id: int | None


@dataclass(frozen=True)
class DocumentCounts:
    """Where the documents of the input went: read = written + empty + rejected."""

    read: int
    written: int
    empty: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class PassedOver:
    """A file of the input that was not read, and why (a word of `ingest.input_files.REASONS`)."""

    path: str
    reason: str


@dataclass(frozen=True)
class FileCounts:
    """Where the files of the input went: found = read + the sum of `passed_over`, which counts by reason.

    For a shard: of the whole job. `passed_over_files` holds the first `KEPT_PASSED_OVER` of them.
    """

    found: int
    read: int
    passed_over: dict[str, int] = field(default_factory=dict)
    passed_over_files: tuple[PassedOver, ...] = ()

    @classmethod
    def of(cls, read: int, passed_over: Sequence[PassedOver]) -> "FileCounts":
        by_reason = Counter(file.reason for file in passed_over)
        return cls(read + len(passed_over), read, dict(by_reason), tuple(passed_over[:KEPT_PASSED_OVER]))


@dataclass(frozen=True)
class ShardRecord:
    """Which part of a job the pair is: `index` (from 0) of `count`; `whole` is a hash of what all of them must share:
    the list of pieces that they were dealt from, and what was done to them."""

    index: int
    count: int
    whole: str


@dataclass(frozen=True)
class MaskRecord:
    """The pair's mask file, and how its rows were made.

    Attributes:
        row_length: tokens in a row; `rows`: how many.
        answer_tokens, padding_tokens: tokens of the pair that are such; the others are context.
        blocks: XXH3 (128 bits) of each `HASH_BLOCK` bytes of the file.
        template: name of the chat template (a built-in one's, or its file's); `template_sha256`: of its text.
        cut_samples, cut_tokens: samples that lost their end, and what they lost.
        rejected_tokens: tokens of rejected answers, which only pairs of preference data have.
    """

    row_length: int
    rows: int
    answer_tokens: int
    padding_tokens: int
    blocks: tuple[str, ...]
    template: str
    template_sha256: str
    cut_samples: int = 0
    cut_tokens: int = 0
    rejected_tokens: int = 0


@dataclass(frozen=True)
class Meta:
    """Contents of `<prefix>.meta.json`; docs/formats.md describes each field.

    Attributes:
        unigram_entropy: entropy of the token frequencies in nats per token: the loss of a model that knows nothing
            but how frequent each token is.
        bin_blocks: XXH3 (128 bits) of each `HASH_BLOCK` bytes of the `.bin` file; `idx_xxh3`: of the `.idx` file.
        sources: the files the texts came from.
        rejected: documents left out, by reason.
        notes: lines that were taken though unusual (blank ones, CR LF, byte order marks).
        job: hash of all that decided the output, by which a finished job is known again.
        files: how many files were found under the inputs, and why some were not read; None where that is not known.
        shard: which part of a job this is; None where it is a whole one, or its program did not say.
        mask: of a pair of packed samples; its documents are the samples. None where every token counts.
    """

    tokenizer: TokenizerRecord
    dtype: str
    num_documents: int
    num_sequences: int
    num_tokens: int
    max_token_id: int
    unigram_entropy: float
    append_eod: bool
    documents: DocumentCounts
    bin_size: int
    idx_size: int
    bin_blocks: tuple[str, ...] = ()
    idx_xxh3: str | None = None
    sources: tuple[FileRecord, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    job: str = ""
    shard: ShardRecord | None = None
    files: FileCounts | None = None
    mask: MaskRecord | None = None
    format_version: int = FORMAT_VERSION

    def write(self, prefix: str | Path) -> None:
        """Write the meta file of `prefix`, whole or not at all."""
        path = meta_path(prefix)
        try:
            write_json(path, asdict(self))
        except OSError as error:
            raise DataError(f"{path} can't be written: {error.strerror}") from error


def meta_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.meta.json")


class BrokenMeta(DataError):
    """A meta file that is none, or lacks something; the pair beside it may be whole all the same."""

    def __init__(self, path: Path, what: object):
        prefix = str(path).removesuffix(".meta.json")
        super().__init__(
            f"{path} is no complete meta file ({what})\n  fix: `megatron-sky data verify {prefix} --tokenizer T "
            "--write-meta` verifies the pair and writes it anew; or make the pair again"
        )


def read_meta(prefix: str | Path) -> Meta | None:
    """The meta file of `prefix`, or None where there is none (files made by another tool).

    Raises:
        BrokenMeta: the file is damaged.
        DataError: the file can't be read, or is of another version.
    """
    path = meta_path(prefix)
    try:
        given = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise BrokenMeta(path, error) from error
    return _parse(path, given)


def _parse(path: Path, given: object) -> Meta:
    if not isinstance(given, dict) or "format_version" not in given:
        raise BrokenMeta(path, "it has no format_version")
    version = given["format_version"]
    if version not in (FORMAT_VERSION, MASKED_VERSION):
        raise DataError(
            f"{path}: format_version is {version!r}; this program knows {FORMAT_VERSION} and {MASKED_VERSION}\n"
            "  fix: make the files again with this version, or remove the meta file to use them unchecked"
        )
    try:
        return read_record(Meta, given)
    except BadRecord as error:
        raise BrokenMeta(path, error) from error


def shared_source(one: Meta | None, other: Meta | None) -> str | None:
    """A text file that two pairs were both made from, by the hashes of its content; None where none is known."""
    if one is None or other is None:
        return None
    known = {record.blocks for record in other.sources if record.blocks}
    return next((record.path for record in one.sources if record.blocks in known), None)


def check_source(
    prefix: str | Path, *, vocab_size: int, tokenizer_sha256: str | None = None, eod_id: int | None = None
) -> Meta | None:
    """Open a pair, `check_tokens` it, and close it."""
    with IndexedTokens(prefix) as tokens:
        return check_tokens(tokens, vocab_size=vocab_size, tokenizer_sha256=tokenizer_sha256, eod_id=eod_id)


def check_tokens(
    tokens: IndexedTokens, *, vocab_size: int, tokenizer_sha256: str | None = None, eod_id: int | None = None
) -> Meta | None:
    """Compare an opened pair with its meta file and with the model that is to read it.

    In constant time where the meta file vouches for the index; an index without one, or changed since, is read.

    Args:
        vocab_size: tokens the model knows; every id must be below.
        tokenizer_sha256: hash of the run's tokenizer, where one is configured.
        eod_id: the id with which that tokenizer ends a document, which its hash does not tell.

    Returns:
        The meta file, or None where the pair has none; ids are then known to be right only batch by batch.

    Raises:
        DataError: they contradict each other; the message says which and how.
    """
    prefix, meta = tokens.prefix, checked_meta(tokens)
    if meta is None:
        return None
    if meta.max_token_id >= vocab_size:
        raise DataError(
            f"{bin_path(prefix)} holds token id {meta.max_token_id}, the model knows ids below model.vocab_size = "
            f"{vocab_size}\n  fix: set model.vocab_size to the tokenizer's {meta.tokenizer.vocab_size}, or tokenize "
            "the text with the run's tokenizer"
        )
    if tokenizer_sha256 is not None and meta.tokenizer.sha256 != tokenizer_sha256:
        raise DataError(
            f"{meta_path(prefix)}: the tokens were made with the tokenizer {meta.tokenizer.name} "
            f"(sha256 {meta.tokenizer.sha256[:12]}), the recipe names one with sha256 {tokenizer_sha256[:12]}\n"
            "  fix: set tokenizer.path to the one the data was made with, or tokenize again"
        )
    if eod_id is not None and meta.append_eod and meta.tokenizer.eod_id != eod_id:
        raise DataError(
            f"{meta_path(prefix)}: the documents end with id {meta.tokenizer.eod_id}, the recipe's tokenizer ends them "
            f"with {eod_id}\n  fix: name the end token that the data was made with as eos_token in "
            "tokenizer_config.json beside the tokenizer, or tokenize again"
        )
    return meta


def checked_meta(tokens: IndexedTokens) -> Meta | None:
    """The meta file of an opened pair, held against it. An index that has none, or was changed since, is read through:
    it must describe the `.bin` file from front to back."""
    prefix = tokens.prefix
    meta = read_meta(prefix)
    if meta is None or os.stat(idx_path(prefix)).st_mtime_ns > os.stat(meta_path(prefix)).st_mtime_ns:
        check_index_once(tokens)
    if meta is not None:
        check_meta(prefix, meta, tokens)
    return meta


def check_meta(prefix: str | Path, meta: Meta, tokens: IndexedTokens) -> None:
    """Hold the counts and sizes of a meta file against the opened pair; raises DataError for the first that differs."""
    actual = {
        "bin_size": bin_path(prefix).stat().st_size,
        "idx_size": idx_path(prefix).stat().st_size,
        "dtype": tokens.dtype.name,
        "num_tokens": tokens.num_tokens,
        "num_documents": tokens.num_documents,
        "num_sequences": tokens.num_sequences,
    }
    for name, value in actual.items():
        stated = getattr(meta, name)
        if stated != value:
            raise DataError(
                f"{meta_path(prefix)}: {name} is {stated!r}, the files have {value!r}: they were changed or cut after "
                "they were written\n  fix: copy all three files again from one run, or tokenize again"
            )


def entropy(counts: np.ndarray) -> float:
    """Entropy of the token frequencies `counts` in nats per token."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def hash_blocks(path: Path, block: int = HASH_BLOCK) -> tuple[str, ...]:
    """XXH3 (128 bits) of each `block` bytes of a file, on all cores."""
    from concurrent.futures import ThreadPoolExecutor

    starts = range(0, path.stat().st_size, block)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(lambda start: hash_range(path, start, block), starts))
