"""A sample of the texts in files, for learning a vocabulary from."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_sky.data.documents import parse_block
from megatron_sky.data.inputs import blocks_of, cut_pieces, find_files


def sample_texts(inputs: Sequence[str | Path], *, key: str = "text", max_bytes: int = 200_000_000) -> Iterator[str]:
    """Texts of the inputs: all up to `max_bytes` characters, else an even part of each block; the same each time.

    Documents that can't be read as texts are passed over; `data tokenize` is the one that counts and reports them.
    """
    pieces = cut_pieces(find_files(inputs))
    total = sum(piece.end - piece.start for piece in pieces)
    step = max(1, -(-total // max(1, max_bytes)))
    done = 0
    for piece in pieces:
        for block in blocks_of(piece, (key,)):
            for (text,) in parse_block(block, (key,)).documents[::step]:
                yield from text if isinstance(text, list) else [text]
                done += len(text)
                if done >= max_bytes:
                    return
