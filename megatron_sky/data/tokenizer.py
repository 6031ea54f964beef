"""Text to token ids and back, by a SentencePiece model.

The tokenizer's vocabulary is what its file holds; rows added to an embedding so that it divides are the model's matter
and never show here. Building one is deterministic: the same texts in the same order give the same file.
"""

import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from megatron_sky.errors import DataError

_LONGEST_LINE = 4000  # bytes; SentencePiece's trainer drops longer lines without a word, so they are cut


class Tokenizer:
    """A SentencePiece model: `encode`, `decode`, and what the rest of the program asks of a tokenizer."""

    def __init__(self, model: bytes, name: str):
        from sentencepiece import SentencePieceProcessor

        self.name = name
        self._model = model
        self._processor = SentencePieceProcessor(model_proto=model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no begin or end token is added."""
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are no valid UTF-8 come out as U+FFFD, begin and end tokens as nothing."""
        return self._processor.decode([int(each) for each in ids])

    def piece(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token."""
        return self._processor.id_to_piece(token_id)

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def eod_id(self) -> int:
        """The id that ends a document: SentencePiece's end-of-sentence."""
        return self._processor.eos_id()

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None where the model has none."""
        found = self._processor.bos_id()
        return None if found < 0 else found

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self._model).hexdigest()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a SentencePiece model file.

    Raises:
        DataError: it is missing or no SentencePiece model.
    """
    path = Path(path)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer {path} can't be read: {error.strerror}\n  mend: give the .model file of a SentencePiece "
            "tokenizer; `megatron-sky tokenizer build` makes one"
        ) from error
    try:
        return Tokenizer(model, path.name)
    except RuntimeError as error:
        raise DataError(f"tokenizer {path} is no SentencePiece model: {error}") from error


def train_tokenizer(texts: Iterable[str], out_path: str | Path, vocab_size: int) -> Tokenizer:
    """Build a BPE vocabulary with byte fallback and single digits, and write it to `out_path`.

    Nothing is normalised, so that decoding gives back the text; what has no piece of its own falls back to bytes.

    Args:
        texts: the texts to learn from; they are held in memory by the trainer.
        vocab_size: exact number of tokens: 256 bytes, 3 control tokens, characters and merges.
    """
    from sentencepiece import SentencePieceTrainer

    lines = [line for text in texts for line in _lines(text)]
    if not lines:
        raise DataError("a tokenizer can't be built from no text\n  mend: give files that hold text")
    if vocab_size < 320:
        raise DataError(f"vocab_size = {vocab_size}: must be at least 320, as 259 are bytes and control tokens")
    buffer = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=buffer,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=_coverage(lines, (vocab_size - 259) * 3 // 4),
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
            f"SentencePiece could not build {vocab_size} tokens from {len(lines):,} lines: {error}\n  mend: give more "
            "text, or a smaller vocab_size"
        ) from error
    model = buffer.getvalue()
    out_path = Path(out_path)
    temporary = out_path.with_name(out_path.name + ".tmp")
    temporary.write_bytes(model)
    temporary.replace(out_path)
    return Tokenizer(model, out_path.name)


def _lines(text: str) -> Iterator[str]:
    """A text's lines, cut where they are longer than the trainer takes; a character has at most 4 bytes."""
    for line in text.split("\n"):
        for start in range(0, len(line), _LONGEST_LINE // 4):
            piece = line[start : start + _LONGEST_LINE // 4].replace("\0", "")
            if piece:
                yield piece


def _coverage(lines: list[str], limit: int) -> float:
    """The share of the text that its `limit` most frequent characters cover, so that they leave room for merges."""
    counts = Counter()
    for line in lines:
        counts.update(line)
    frequent = sum(count for char, count in counts.most_common(limit) if unicodedata.category(char) != "Cn")
    return min(1.0, max(0.5, frequent / sum(counts.values())))
