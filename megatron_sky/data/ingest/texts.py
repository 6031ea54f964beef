"""A sample of the texts in files, for learning a vocabulary from."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_sky.data.ingest.documents import parse_block
from megatron_sky.data.ingest.input_files import find_files
from megatron_sky.data.ingest.inputs import Piece, blocks_of, cut_pieces

_GOLDEN, _ALL_BITS = 0x9E3779B97F4A7C15, (1 << 64) - 1  # the ratio's fraction, of 2**64


def sample_texts(inputs: Sequence[str | Path], *, key: str = "text", max_bytes: int = 200_000_000) -> Iterator[str]:
    """Texts of the inputs: all up to `max_bytes` characters, else an even part of all documents; the same each time.

    All of the input is read first: what compressed files hold is not known before, and a sample of their beginnings
    would be one of the first language or source. What is held in memory meanwhile is thinned out as it grows.

    Files that are passed over are told in the log; documents that can't be read as texts are passed over too, which
    `data tokenize` counts and reports.
    """
    pieces = cut_pieces(find_files(inputs))
    total = sum(piece.end - piece.start for piece in pieces)
    step = max(1, -(-total // max(1, max_bytes)))
    kept: deque[tuple[int, list[str]]] = deque()
    size = 0
    for number, texts in enumerate(_documents(pieces, key)):
        if not _is_drawn(number, step):
            continue
        kept.append((number, texts))
        size += _characters(texts)
        while size > max_bytes and len(kept) > 1:
            step *= 2
            kept = deque((number, texts) for number, texts in kept if _is_drawn(number, step))
            size = sum(_characters(texts) for _, texts in kept)
    while kept:
        yield from kept.popleft()[1]


def _documents(pieces: Sequence[Piece], key: str) -> Iterator[list[str]]:
    for piece in pieces:
        for block in blocks_of(piece, (key,)):
            for (text,) in parse_block(block, (key,)).documents:
                yield text if isinstance(text, list) else [text]


def _is_drawn(number: int, step: int) -> bool:
    """Whether a document is among the one in `step` that are taken; those of twice the step are among them too.

    Multiples of the golden ratio lie evenly whatever the period of what they number (languages in turn, for one).
    """
    return (number * _GOLDEN & _ALL_BITS) * step <= _ALL_BITS


def _characters(texts: Sequence[str]) -> int:
    return sum(map(len, texts))
