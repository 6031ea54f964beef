"""Extending a vocabulary as the Skywork report did: Chinese characters, Chinese words and reserved symbols are added to
a base up to an exact size. Ids of the base stay as they are.

In SentencePiece's BPE a word is reached by merging two pieces at a time, so a word of three characters is of no use
unless two of them are a piece already. Words are therefore learnt as merges from the user's own text, which is what
makes each of them reachable, and every added piece is tried before the model is written.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_sky.errors import DataError
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer
from megatron_sky.tokenizer.train import SMALLEST_VOCAB, character_counts, train_model, training_lines, write_model


def extend_tokenizer(
    base: SentencePieceTokenizer,
    texts: Iterable[str],
    out_path: str | Path,
    *,
    vocab_size: int,
    num_characters: int = 8000,
    reserved: Sequence[str] = (),
) -> SentencePieceTokenizer:
    """Extend a base vocabulary to exactly `vocab_size` tokens and write it to `out_path`.

    Args:
        base: the vocabulary to begin with; its ids are kept.
        texts: Chinese text, from which characters are counted and words are learnt.
        num_characters: at most so many single characters are added, the most frequent ones that the base lacks; where
            the texts hold fewer, the rest of the CJK block follows in code order.
        reserved: symbols that are one token each wherever they stand; they take the last ids.

    Raises:
        DataError: the sizes don't fit, or the texts hold too few words to fill the vocabulary.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    room = vocab_size - base.vocab_size - len(reserved)
    if room < 0:
        raise DataError(
            f"vocab_size = {vocab_size}: the base has {base.vocab_size} tokens and {len(reserved)} are reserved, which "
            f"is more\n  fix: ask for at least {base.vocab_size + len(reserved)}"
        )
    proto = ModelProto.FromString(base.data)
    known = {piece.piece for piece in proto.pieces}
    _check_reserved(reserved, known)
    lines = [line for text in texts for line in training_lines(text)]
    characters = _missing_characters(lines, known, min(num_characters, room))
    words = _learnt_words(lines, known | set(characters), room - len(characters))
    lowest = min((piece.score for piece in proto.pieces), default=0.0)
    for rank, piece in enumerate([*words, *characters], 1):  # a higher score is merged first; characters need no merge
        proto.pieces.add(piece=piece, score=lowest - rank)
    for symbol in reserved:
        proto.pieces.add(piece=symbol, score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    extended = SentencePieceTokenizer(proto.SerializeToString(), Path(out_path).name)
    _check_reachable(extended, range(base.vocab_size, vocab_size))
    return write_model(extended.data, Path(out_path))


def reserved_symbols(count: int) -> list[str]:
    """Chat's three symbols and place holders after them, `count` in all: what the report calls reserved tokens."""
    return ["[USER]", "[BOT]", "[SEP]", *(f"[RESERVED_{number}]" for number in range(count))][:count]


def _is_chinese(text: str) -> bool:
    return all("\u4e00" <= char <= "\u9fff" for char in text)


def _missing_characters(lines: list[str], known: set[str], count: int) -> list[str]:
    counts = character_counts(lines)
    frequent = sorted((char for char in counts if _is_chinese(char)), key=lambda char: (-counts[char], char))
    rest = (chr(code) for code in range(0x4E00, 0xA000))
    ordered = dict.fromkeys(char for char in [*frequent, *rest] if char not in known)
    return list(ordered)[:count]


def _learnt_words(lines: list[str], known: set[str], count: int) -> list[str]:
    """The first `count` Chinese words that a BPE trainer merges from the text, in the order of their merging."""
    if count <= 0:
        return []
    runs = [run for line in lines for run in _chinese_runs(line)]
    asked = SMALLEST_VOCAB + len({char for run in runs for char in run}) + count + 1000
    for _ in range(12):
        words = _merges(runs, asked)
        words = _reachable_words(words, known)
        if words is not None and len(words) >= count:
            return words[:count]
        asked = int(asked * 0.8) if words is None else asked + (count - len(words)) + 1000
    raise DataError(
        f"the text gives too few Chinese words for {count:,} more tokens\n  fix: give more Chinese text, or a smaller "
        "vocab_size"
    )


def _merges(runs: list[str], vocab_size: int) -> list[str] | None:
    """Merged pieces of more than one character in a BPE vocabulary of this size; None where the text gives fewer."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    try:
        proto = ModelProto.FromString(train_model(runs, vocab_size))
    except DataError:
        return None
    return [entry.piece for entry in proto.pieces if len(entry.piece) > 1 and _is_chinese(entry.piece)]


def _reachable_words(words: list[str] | None, known: set[str]) -> list[str] | None:
    """Those words that are made of two pieces that come before them."""
    if words is None:
        return None
    pieces, kept = set(known), []
    for word in words:
        if word not in pieces and any(word[:cut] in pieces and word[cut:] in pieces for cut in range(1, len(word))):
            kept.append(word)
            pieces.add(word)
    return kept


def _chinese_runs(line: str) -> Iterator[str]:
    run = ""
    for char in line:
        if _is_chinese(char):
            run += char
        elif run:
            yield run
            run = ""
    if run:
        yield run


def _check_reserved(reserved: Sequence[str], known: set[str]) -> None:
    for symbol in reserved:
        if symbol in known or reserved.count(symbol) > 1:
            raise DataError(f"reserved symbol {symbol!r} is in the vocabulary already\n  fix: choose another")


def _check_reachable(tokenizer: SentencePieceTokenizer, ids: Iterable[int]) -> None:
    lost = [tokenizer.piece(unit) for unit in ids if unit not in tokenizer.encode("\n" + tokenizer.piece(unit))]
    if lost:
        raise DataError(
            f"{len(lost):,} added tokens would never be used, as no two pieces merge to them: {', '.join(lost[:10])}\n"
            "  fix: give more text"
        )
