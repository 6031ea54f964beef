"""Whether documents to be evaluated stand in the mixture that a checkpoint was trained on, as far as that is known.

A native checkpoint holds its recipe, which names the token files. Two things are compared with them:
the file itself, by the hashes of its 16 MiB blocks that each `.meta.json` keeps of the files it was made from; and
each document, by a hash of its token ids, with the documents of the same length in `.bin`. A Hugging Face folder says
nothing of its data.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.data.ingest.inputs import BLOCK_BYTES
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path
from megatron_sky.data.tokens.meta import Meta, hash_blocks, meta_path, read_meta
from megatron_sky.errors import DataError

_MOST_DOCUMENTS = 2_000_000  # hashed in one source; more are not looked at


@dataclass(frozen=True)
class Overlap:
    """A domain and a training source: how many of its `documents` stand in it, or which file was taken whole."""

    domain: str
    source: str
    documents: int
    same_file: str | None = None

    def __str__(self) -> str:
        what = f"{self.same_file} was" if self.same_file else f"{self.documents} of its documents were"
        return f"domain {self.domain}: {what} trained on, as part of the source {self.source}: its loss is no test"


def find_overlaps(
    domains: Iterable[tuple[str, Sequence[str], Sequence[Sequence[int]]]],
    sources: Iterable[tuple[str, str]],
    *,
    tokenizer_sha256: str,
) -> tuple[list[Overlap], list[str]]:
    """(what overlaps, what could not be looked at and why).

    Args:
        domains: (name, its files, the ids of each whole document).
        sources: (name, path prefix) of each training source.
        tokenizer_sha256: of the tokenizer that made the ids; a source made by another is compared by its files only.
    """
    domains = list(domains)
    hashes = {name: {_hash(np.asarray(ids, np.int64)) for ids in documents} for name, _, documents in domains}
    lengths = np.array(sorted({len(ids) for _, _, documents in domains for ids in documents}))
    overlaps, unknown = [], []
    for source, prefix in sources:
        try:
            meta = read_meta(prefix)
            same = _same_files(domains, source, meta)
            overlaps += same
            if meta is None:
                unknown.append(
                    f"source {source}: can't be compared: {meta_path(prefix)}, which would name its tokenizer and the "
                    "files it was made from, is not there"
                )
                continue
            if meta.tokenizer.sha256 != tokenizer_sha256:
                unknown.append(f"source {source}: its documents can't be compared: tokenized by another tokenizer")
                continue
            in_training = _documents_of(prefix, meta, lengths)
        except DataError as error:
            unknown.append(f"source {source}: can't be compared: {str(error).splitlines()[0]}")
            continue
        same_domains = {overlap.domain for overlap in same}
        shared = ((name, len(wanted & in_training)) for name, wanted in hashes.items() if name not in same_domains)
        overlaps += [Overlap(name, source, count) for name, count in shared if count]
    return overlaps, unknown


def unverifiable_sources(listed: Collection[str], given: Mapping[str, int], init_from: str | None) -> list[str]:
    """What a checkpoint was trained on, or may have been, that its recipe names no token files of.

    Args:
        listed: names of the recipe's training sources.
        given: tokens that each source has given, see `data.plan.tokens_given`.
        init_from: the weights that the run began from.
    """
    left = [name for name, tokens in given.items() if tokens and name not in listed]
    sentences = [
        f"source {name}: can't be compared: it left the mixture, and the recipe names its files no more"
        for name in left
    ]
    if init_from is not None:
        sentences.append(f"the run began from the weights of {init_from}, whose training data can't be looked at")
    if not listed and not left:
        sentences.append("its recipe names no training data: it was converted, and what it was trained on is not known")
    return sentences


def _same_files(domains: list, source: str, meta: Meta | None) -> list[Overlap]:
    known = {record.blocks for record in meta.sources if record.blocks} if meta is not None else set()
    return [
        Overlap(name, source, len(documents), same_file=str(path))
        for name, files, documents in domains
        for path in files
        if known and hash_blocks(Path(path), BLOCK_BYTES) in known
    ]


def _documents_of(prefix: str, meta: Meta, lengths: np.ndarray) -> set[bytes]:
    """Hashes of the source's documents that have one of `lengths` tokens, its end-of-document token not counted."""
    with IndexedTokens(prefix) as tokens:
        if tokens.num_sequences > tokens.num_documents:
            raise DataError(f"{bin_path(prefix)}: its documents are split into sentences")
        if tokens.num_sequences > _MOST_DOCUMENTS:
            raise DataError(f"{bin_path(prefix)}: {tokens.num_sequences:,} documents, of {_MOST_DOCUMENTS:,} at most")
        own = tokens.lengths() - int(meta.append_eod)
        starts = tokens.pointers() // tokens.dtype.itemsize
        wanted = np.flatnonzero(np.isin(own, lengths))
        return {_hash(tokens.read(int(starts[index]), int(own[index]))) for index in wanted}


def _hash(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.astype(np.int64).tobytes(), digest_size=16).digest()
