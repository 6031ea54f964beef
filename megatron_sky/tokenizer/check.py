"""What a tokenizer must keep to, tried on texts of every kind: the proofs behind `megatron-sky tokenizer check`.

Round trip, ids within the size, single digits, special symbols in one piece, the same ids from every library that can
read it, and characters per token in each language.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megatron_sky.errors import MissingDependency
from megatron_sky.tokenizer.encoder import BatchEncoder
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, Tokenizer
from megatron_sky.tokenizer.language import language_of

SPACE_SIGN = "\u2581"  # SentencePiece spells a space with it, so a text that holds it comes back with a space

_HARD = (
    "",
    " ",
    "  two  spaces  ",
    "\n\ttabs\r\nand lines\n\n",
    "0123456789 3.14 1,000,000 ２０２６年",
    "汉字、标点。「引号」——破折号……",
    "e\u0301 \u00e9 \ufb01 \u2126 \ufeff \u200d \u00a0",
    "👩‍👩‍👧 🇨🇳 😀",
    "<s> </s> <unk> <0x0A> [USER]",
    "def f(x):\n    return {'a': [x ** 2]}\n",
    "\U0010fffd \U00020000 \u0378",
)


@dataclass(frozen=True)
class Check:
    """One rule, whether it holds, and what was seen."""

    rule: str
    holds: bool
    seen: str


def check_tokenizer(
    tokenizer: Tokenizer, texts: Sequence[str] = (), *, seed: int = 0, trials: int = 2000
) -> list[Check]:
    """Try every rule on hard texts, random Unicode and the user's own `texts`."""
    tried = [*_HARD, *_random_texts(seed, trials), *texts]
    return [
        _round_trip(tokenizer, tried),
        _within_size(tokenizer, tried),
        _single_digits(tokenizer),
        _whole_specials(tokenizer),
        *_same_ids(tokenizer, tried),
        *_compression(tokenizer, texts),
    ]


def _random_texts(seed: int, count: int) -> Iterable[str]:
    """Texts of every script, surrogates and the space sign left out."""
    rng = random.Random(seed)
    ranges = ((0x20, 0x7E), (0x01, 0x24F), (0x4E00, 0x9FFF), (0x3000, 0x30FF), (0x0370, 0x1FFF), (0xE000, 0x10FFFF))
    for _ in range(count):
        low, high = rng.choice(ranges)
        yield "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40))).replace(SPACE_SIGN, "")


def _round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> Check:
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    outside = (SPACE_SIGN,) if is_sentencepiece else (SPACE_SIGN, *tokenizer.special_texts)
    texts = [text for text in texts if not any(each in text for each in outside)]
    lost = [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text]
    seen = f"{len(texts):,} texts come back" if not lost else f"{len(lost):,} don't, as {lost[0][:60]!r}"
    if is_sentencepiece:
        seen += "; U+2581 alone comes back as a space, as in every SentencePiece model"
    else:
        seen += "; texts that spell special symbols are not counted, as the library takes them for the symbols"
    return Check("every valid UTF-8 text comes back", not lost, seen)


def _within_size(tokenizer: Tokenizer, texts: Sequence[str]) -> Check:
    largest = max((max(tokenizer.encode(text), default=0) for text in texts), default=0)
    eod = tokenizer.eod_id
    holds = largest < tokenizer.vocab_size and (eod is None or 0 <= eod < tokenizer.vocab_size)
    return Check(
        "no id beyond the size", holds, f"largest {largest:,} of {tokenizer.vocab_size:,}; end of document {eod}"
    )


def _single_digits(tokenizer: Tokenizer) -> Check:
    long = [i for i in range(tokenizer.vocab_size) if _digits(tokenizer.piece(i)) > 1 and not _is_special(tokenizer, i)]
    seen = f"{len(long):,} tokens hold more, as {tokenizer.piece(long[0])!r}" if long else "no token holds two"
    return Check("digits are single", not long, seen)


def _digits(piece: str | None) -> int:
    if piece is None or (piece.startswith("<0x") and piece.endswith(">")):
        return 0
    return sum(char.isdigit() for char in piece)


def _is_special(tokenizer: Tokenizer, token_id: int) -> bool:
    return tokenizer.piece(token_id) in tokenizer.special_texts


def _whole_specials(tokenizer: Tokenizer) -> Check:
    """Reserved symbols are one token in any surroundings; control tokens of SentencePiece never come from text."""
    split, made = [], []
    for number in range(tokenizer.vocab_size):
        symbol = tokenizer.piece(number)
        if symbol not in tokenizer.special_texts:
            continue
        found = number in tokenizer.encode(f"a{symbol}b")
        if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.is_reserved(number):
            made += [symbol] if found else []
        elif not found:
            split.append(symbol)
    seen = f"{len(tokenizer.special_texts)} symbols"
    if split or made:
        seen = f"split: {split[:5]}; made from text: {made[:5]}"
    return Check("special symbols are never split, control tokens never made from text", not split and not made, seen)


def _same_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Check]:
    checks = []
    texts = [text for text in texts if text]
    expected = [tokenizer.encode(text) for text in texts]
    for name, encode in _other_encoders(tokenizer):
        differ = [text for text, ids, other in zip(texts, expected, encode(texts), strict=True) if ids != other]
        seen = f"{len(texts):,} texts" if not differ else f"{len(differ):,} differ, as {differ[0][:60]!r}"
        checks.append(Check(f"{name} gives the same ids", not differ, seen))
    return checks


def _other_encoders(tokenizer: Tokenizer):
    fast = BatchEncoder(tokenizer, check_every=1 << 60)
    if fast.is_fast:
        yield "the fast encoder (gigatoken)", lambda texts: _split(*fast(texts))
    if isinstance(tokenizer, SentencePieceTokenizer):
        try:
            library = tokenizer.as_huggingface()
        except MissingDependency:
            return
        special = tokenizer.special_texts
        yield (
            "Hugging Face tokenizers",
            lambda texts: [
                tokenizer.encode(text)
                if any(each in text for each in special)
                else library.encode(text, add_special_tokens=False).ids
                for text in texts
            ],
        )


def _split(flat, lengths) -> list[list[int]]:
    ids, at = [], 0
    for length in lengths.tolist():
        ids.append(flat[at : at + length].tolist())
        at += length
    return ids


def _compression(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Check]:
    characters, tokens = {}, {}
    for text in texts:
        language = language_of(text)
        characters[language] = characters.get(language, 0) + len(text)
        tokens[language] = tokens.get(language, 0) + len(tokenizer.encode(text))
    return [
        Check(f"characters per token, {name}", True, f"{characters[name] / max(1, tokens[name]):.3f}")
        for name in sorted(characters)
    ]
