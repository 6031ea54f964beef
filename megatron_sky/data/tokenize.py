"""JSON lines to `.bin/.idx` and their meta file."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.data.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from megatron_sky.data.meta import DocumentCounts, FileRecord, Meta, TokenizerRecord, entropy, hash_blocks, hash_file
from megatron_sky.data.tokenizer import Tokenizer
from megatron_sky.errors import DataError


@dataclass
class _Tally:
    """Counts of what went by."""

    counts: np.ndarray
    read: int = 0
    empty: int = 0


def tokenize_jsonl(
    inputs: Iterable[str | Path],
    prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    key: str = "text",
    append_eod: bool = True,
) -> Meta:
    """Write the texts of JSONL files, in order, to `<prefix>.bin/.idx/.meta.json`.

    Raises:
        DataError: an input is missing or holds a line without a text under `key`; nothing is left behind then.
    """
    inputs = [Path(path) for path in inputs]
    dtype = token_dtype(tokenizer.vocab_size)
    tally = _Tally(np.zeros(tokenizer.vocab_size, dtype=np.int64))
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(prefix, dtype) as writer:
        for text in _texts(inputs, key):
            tally.read += 1
            ids = tokenizer.encode(text)
            if not ids:
                tally.empty += 1
                continue
            tokens = np.array([*ids, tokenizer.eod_id] if append_eod else ids, dtype=dtype)
            tally.counts += np.bincount(tokens, minlength=len(tally.counts))
            writer.add_document(tokens)
    meta = _describe(prefix, tokenizer, writer, tally, append_eod, inputs)
    meta.write(prefix)
    return meta


def _texts(inputs: list[Path], key: str) -> Iterator[str]:
    for path in inputs:
        try:
            file = open(path, encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror}") from error
        with file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)[key]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{path}, line {number}: no JSON object with a text under {key!r}") from error


def _describe(
    prefix: str | Path, tokenizer: Tokenizer, writer: IndexedWriter, tally: _Tally, append_eod: bool, inputs: list[Path]
) -> Meta:
    return Meta(
        tokenizer=TokenizerRecord(tokenizer.name, tokenizer.sha256, tokenizer.vocab_size, tokenizer.eod_id),
        dtype=writer.dtype.name,
        num_documents=writer.num_documents,
        num_sequences=writer.num_sequences,
        num_tokens=writer.num_tokens,
        max_token_id=int(tally.counts.nonzero()[0][-1]) if writer.num_tokens else -1,
        unigram_entropy=entropy(tally.counts),
        append_eod=append_eod,
        documents=DocumentCounts(tally.read, writer.num_documents, tally.empty),
        bin_size=bin_path(prefix).stat().st_size,
        idx_size=idx_path(prefix).stat().st_size,
        bin_blocks=hash_blocks(bin_path(prefix)),
        idx_sha256=hash_file(idx_path(prefix)),
        sources=tuple(FileRecord(str(path), path.stat().st_size, hash_file(path)) for path in inputs),
    )
