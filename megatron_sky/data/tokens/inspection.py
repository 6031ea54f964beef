"""Looking at a pair: its documents as text, how long they are, in which language, and a picture of both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_sky.data.tokens.index_check import check_bounds
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.mask import open_mask
from megatron_sky.data.tokens.meta import Meta, read_meta
from megatron_sky.errors import DataError
from megatron_sky.palette import COLOURS
from megatron_sky.tokenizer.kinds import Tokenizer
from megatron_sky.tokenizer.language import LANGUAGES, language_of

SAMPLED_DOCUMENTS = 2000


@dataclass(frozen=True)
class Overview:
    """A pair in figures.

    Attributes:
        edges, documents: documents with `edges[i] <= tokens < edges[i + 1]`, of all or of an even sample of them.
        language_tokens: tokens by language, in a sample of documents (empty without a tokenizer).
        sampled: documents in that sample.
    """

    prefix: str
    meta: Meta | None
    dtype: str
    num_documents: int
    num_tokens: int
    edges: tuple[int, ...]
    documents: tuple[int, ...]
    longest: int
    language_tokens: dict[str, int]
    sampled: int


def overview(prefix: str | Path, tokenizer: Tokenizer | None = None) -> Overview:
    """Count a pair's documents by length, and with a tokenizer its tokens by language."""
    with IndexedTokens(prefix, any_order=True) as pair:
        sizes = _document_sizes(pair)
        longest = int(sizes.max())
        edges = [0, 1, *(2**power for power in range(1, longest.bit_length() + 1))]
        counted, _ = np.histogram(sizes, bins=edges)
        languages, sampled = ({}, 0) if tokenizer is None else _languages(pair, tokenizer)
        return Overview(
            prefix=str(prefix),
            meta=read_meta(prefix),
            dtype=pair.dtype.name,
            num_documents=pair.num_documents,
            num_tokens=pair.num_tokens,
            edges=tuple(edges),
            documents=tuple(counted.tolist()),
            longest=longest,
            language_tokens=languages,
            sampled=sampled,
        )


def show_document(prefix: str | Path, number: int, tokenizer: Tokenizer) -> str:
    """The text of one document; raises DataError where there is none of that number."""
    with IndexedTokens(prefix, any_order=True) as pair:
        _check_number(pair, number)
        return tokenizer.decode(pair.document(number).tolist())


@dataclass(frozen=True)
class TokenRun:
    """Neighbouring tokens of one kind (a mask file's CONTEXT, ANSWER, ...), by their spellings in the vocabulary."""

    kind: int
    pieces: tuple[str, ...]


def show_sample(prefix: str | Path, number: int, tokenizer: Tokenizer) -> list[TokenRun] | None:
    """The tokens of one packed sample by what the mask says of them; None where the pair has no mask.

    Raises DataError where there is no sample of that number.
    """
    with IndexedTokens(prefix, any_order=True) as pair:
        mask = open_mask(prefix, pair.num_tokens, is_known=False)
        if mask is None:
            return None
        _check_number(pair, number)
        ids = pair.document(number)
        flags = mask.read(pair.document_offset(number), len(ids))
        mask.close()
        edges = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(ids)]
        return [
            TokenRun(int(flags[begin]), tuple(tokenizer.piece(int(token)) for token in ids[begin:end]))
            for begin, end in pairwise(edges)
        ]


def _check_number(pair: IndexedTokens, number: int) -> None:
    if not 0 <= number < pair.num_documents:
        raise DataError(
            f"{pair.prefix} has no document {number}: its {pair.num_documents:,} documents are numbered from 0 to "
            f"{pair.num_documents - 1:,}"
        )


def draw(overviews: Sequence[Overview], path: str | Path) -> None:
    """A PNG of the document lengths and the tokens per language of one or more pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2 * len(overviews)), layout="constrained")
    axes = figure.subplots(len(overviews), 2, squeeze=False)
    for (left, right), view in zip(axes, overviews, strict=True):
        labels = [f"{low:,}" for low in view.edges[:-1]]
        left.bar(labels, view.documents, color=COLOURS[0])
        left.set(title=f"{Path(view.prefix).name}: documents by length", xlabel="tokens, at least", ylabel="documents")
        left.tick_params(axis="x", rotation=60)
        right.barh(LANGUAGES, [view.language_tokens.get(name, 0) for name in LANGUAGES], color=COLOURS[2])
        right.set(title=f"tokens by language, {view.sampled:,} documents", xlabel="tokens")
    figure.savefig(path, dpi=110)


def _document_sizes(pair: IndexedTokens) -> np.ndarray:
    """Tokens of each document."""
    check_bounds(pair)
    ends = np.concatenate([[0], np.cumsum(pair.lengths(), dtype=np.int64)])
    return np.diff(ends[pair.bounds()])


def _languages(pair: IndexedTokens, tokenizer: Tokenizer) -> tuple[dict[str, int], int]:
    step = max(1, pair.num_documents // SAMPLED_DOCUMENTS)
    counts: Counter[str] = Counter()
    sampled = 0
    for number in range(0, pair.num_documents, step):
        ids = pair.document(number)
        counts[language_of(tokenizer.decode(ids[:4096].tolist()))] += len(ids)
        sampled += 1
    return dict(counts), sampled
