"""Learning a vocabulary: SentencePiece BPE with byte fallback, single digits and nothing normalised (decoding
gives back the text).

The same texts give the same file.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_sky.errors import DataError
from megatron_sky.files import write_bytes
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer

_LONGEST_LINE = 4000  # bytes; SentencePiece's trainer drops longer lines without a word, so they are cut
SMALLEST_VOCAB = 320  # 256 bytes, 3 control tokens, and room for some characters
_BYTES_AND_CONTROL = 259
_LEAST_COVERAGE = 0.98  # SentencePiece's trainer takes no less
_ROOM_FOR_MERGES = 4  # tokens, at the least


def train_tokenizer(
    texts: Iterable[str], out_path: str | Path, vocab_size: int, *, reserved: Sequence[str] = ()
) -> SentencePieceTokenizer:
    """Build a BPE vocabulary with byte fallback and single digits, and write it to `out_path`.

    Args:
        texts: the texts to learn from; they are held in memory by the trainer.
        vocab_size: exact number of tokens: 256 bytes, 3 control tokens, reserved symbols, characters and merges.
        reserved: symbols that are one token each wherever they stand.

    Raises:
        DataError: the size is too small for the text's characters or too large for its merges, or no text is given.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise DataError(
            f"vocab_size = {vocab_size}: must be at least {SMALLEST_VOCAB}, as 259 are bytes and control tokens"
        )
    lines = [line for text in texts for line in training_lines(text)]
    model = train_model(lines, vocab_size, reserved)
    return write_model(model, Path(out_path))


def train_model(lines: list[str], vocab_size: int, reserved: Sequence[str] = ()) -> bytes:
    from sentencepiece import SentencePieceTrainer

    if not lines:
        raise DataError("a tokenizer can't be built from no text\n  fix: give files that hold text")
    coverage = _coverage(lines, vocab_size, len(reserved))
    buffer = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=buffer,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=coverage,
            user_defined_symbols=list(reserved),
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_LONGEST_LINE * 2,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"SentencePiece could not build {vocab_size} tokens from {len(lines):,} lines: {error}\n  fix: give more "
            "text, or a smaller vocab_size"
        ) from error
    return buffer.getvalue()


def training_lines(text: str) -> Iterator[str]:
    """A text's lines, cut where they are longer than the trainer takes; a character has at most 4 bytes."""
    for line in text.split("\n"):
        for start in range(0, len(line), _LONGEST_LINE // 4):
            piece = line[start : start + _LONGEST_LINE // 4].replace("\0", "")
            if piece:
                yield piece


def _coverage(lines: list[str], vocab_size: int, num_reserved: int) -> float:
    """The share of the text whose characters get tokens of their own: of the most frequent, as many as leave a quarter
    of the room for merges, and at least what the trainer asks for; the others become bytes.

    Raises:
        DataError: the vocabulary has no room for these.
    """
    counts = character_counts(lines)
    shares = np.cumsum([count for _, count in counts.most_common()]) / counts.total()
    room = vocab_size - _BYTES_AND_CONTROL - num_reserved
    least = int(np.searchsorted(shares, _LEAST_COVERAGE)) + 1
    if least > room - _ROOM_FOR_MERGES:
        enough = _BYTES_AND_CONTROL + num_reserved + -(-least * 4 // 3) + _ROOM_FOR_MERGES
        raise DataError(
            f"vocab_size = {vocab_size}: {least:,} characters make up {_LEAST_COVERAGE:.0%} of the text, and beside "
            f"bytes, control tokens and reserved symbols there is room for {max(room, 0):,} tokens\n"
            f"  fix: give a vocab_size of {enough} or more"
        )
    limit = min(max(room * 3 // 4, least), len(shares))
    return min(1.0, max(_LEAST_COVERAGE, float(shares[limit - 1])))


def character_counts(lines: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    return counts


def write_model(model: bytes, path: Path) -> SentencePieceTokenizer:
    try:
        write_bytes(path, model)
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}") from error
    return SentencePieceTokenizer(model, path.name)
