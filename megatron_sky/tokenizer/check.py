"""What a tokenizer must keep to, tried on texts of every kind: the proofs behind `megatron-sky tokenizer check`.

Round trip, ids within the size, single digits, reserved symbols in one piece, no control token from text, the same ids
from every library that can read it, and characters per token in each language.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import contains

from megatron_sky.errors import MissingDependency
from megatron_sky.tokenizer.encoder import BatchEncoder
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, Tokenizer, any_of
from megatron_sky.tokenizer.language import language_of
from megatron_sky.tokenizer.to_huggingface import Unconvertible, to_tokenizers

_HUGGING_FACE, _SAME_IDS = "Hugging Face tokenizers", "gives the same ids"
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
    samples = [*_HARD, *_random_texts(seed, trials), *texts]
    return [
        _round_trip(tokenizer, samples),
        _within_size(tokenizer, samples),
        _single_digits(tokenizer),
        _whole_symbols(tokenizer),
        *_no_control_from_text(tokenizer),
        *_same_ids(tokenizer, samples),
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
    symbols = any_of((SPACE_SIGN, *tokenizer.reserved_tokens))
    texts = [text for text in texts if not (symbols and symbols.search(text))]
    lost = [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text]
    seen = f"{len(texts):,} texts come back" if not lost else f"{len(lost):,} don't, as {lost[0][:60]!r}"
    if isinstance(tokenizer, SentencePieceTokenizer):
        seen += "; U+2581 alone comes back as a space, as in every SentencePiece model"
    return Check("every valid UTF-8 text comes back", not lost, seen)


def _within_size(tokenizer: Tokenizer, texts: Sequence[str]) -> Check:
    largest = max((max(tokenizer.encode(text), default=0) for text in texts), default=0)
    eod = tokenizer.eod_id
    holds = largest < tokenizer.vocab_size and (eod is None or 0 <= eod < tokenizer.vocab_size)
    return Check(
        "no id beyond the size", holds, f"largest {largest:,} of {tokenizer.vocab_size:,}; end of document {eod}"
    )


def _single_digits(tokenizer: Tokenizer) -> Check:
    texts = (tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size))
    long = [text for text in texts if sum(map(str.isdigit, text)) > 1 and text not in tokenizer.special_texts]
    seen = f"{len(long):,} tokens hold more, as {long[0]!r}" if long else "no token holds two"
    return Check("digits are single", not long, seen)


def _whole_symbols(tokenizer: Tokenizer) -> Check:
    symbols = tokenizer.reserved_tokens
    split = [symbol for symbol, token_id in symbols.items() if token_id not in tokenizer.encode(f"a{symbol}b")]
    seen = f"{len(symbols)} symbols" if not split else f"{len(split)} are split, as {split[0]!r}"
    return Check("reserved symbols are never split", not split, seen)


def _no_control_from_text(tokenizer: Tokenizer) -> list[Check]:
    """By the tokenizer's own library and by what encodes a corpus; and that the option does give the tokens."""
    control = tokenizer.control_tokens
    ids = set(control.values())
    texts = {symbol: [f"a{symbol}b", symbol, f" {symbol} ", symbol * 2, f"\n{symbol}\n"] for symbol in control}
    fast = BatchEncoder(tokenizer)
    with_token, not_parsed = [], []
    for symbol, token_id in control.items():
        encoded = [*map(tokenizer.encode, texts[symbol]), *_split(*fast(texts[symbol]))]
        with_token += [] if ids.isdisjoint(chain.from_iterable(encoded)) else [symbol]
        parsed = [tokenizer.encode(text, parse_special=True) for text in (symbol, f" {symbol} ")]
        not_parsed += [symbol] if not all(map(contains, parsed, repeat(token_id))) else []
    return [
        Check(
            rule, not wrong, f"{len(control)} tokens" if not wrong else f"{len(wrong)} are otherwise, as {wrong[0]!r}"
        )
        for rule, wrong in (
            ("text never makes a control token", with_token),
            ("asked for (--parse-special), it does", not_parsed),
        )
    ]


def _same_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Check]:
    texts = [text for text in texts if text]
    expected = [tokenizer.encode(text) for text in texts]
    checks = []
    fast = BatchEncoder(tokenizer, check_every=1 << 60)
    if fast.is_fast:
        checks.append(_compare("the fast encoder (gigatoken)", texts, expected, _split(*fast(texts))))
    if isinstance(tokenizer, SentencePieceTokenizer):
        checks.append(_hugging_face(tokenizer, texts, expected))
    return checks


def _hugging_face(tokenizer: SentencePieceTokenizer, texts: Sequence[str], expected: Sequence[list[int]]) -> Check:
    """The form that an export ships; what it makes of special symbols in a text is its own."""
    try:
        library = to_tokenizers(tokenizer)
    except (MissingDependency, Unconvertible) as error:
        return Check(f"{_HUGGING_FACE} {_SAME_IDS}", True, "not tried: " + str(error).partition("\n")[0])
    special = any_of(tokenizer.special_texts)
    plain = [number for number, text in enumerate(texts) if not (special and special.search(text))]
    encoded = [library.encode(texts[number], add_special_tokens=False).ids for number in plain]
    return _compare(_HUGGING_FACE, [texts[number] for number in plain], [expected[number] for number in plain], encoded)


def _compare(name: str, texts: Sequence[str], expected: Sequence[list[int]], encoded: Sequence[list[int]]) -> Check:
    differ = [text for text, ids, other in zip(texts, expected, encoded, strict=True) if ids != other]
    seen = f"{len(texts):,} texts" if not differ else f"{len(differ):,} differ, as {differ[0][:60]!r}"
    return Check(f"{name} {_SAME_IDS}", not differ, seen)


def _split(flat, lengths) -> list[list[int]]:
    ids, at = [], 0
    for length in lengths.tolist():
        ids.append(flat[at : at + length].tolist())
        at += length
    return ids


def _compression(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Check]:
    characters: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for text in texts:
        language = language_of(text)
        characters[language] = characters.get(language, 0) + len(text)
        tokens[language] = tokens.get(language, 0) + len(tokenizer.encode(text))
    return [
        Check(f"characters per token, {name}", True, f"{characters[name] / max(1, tokens[name]):.3f}")
        for name in sorted(characters)
    ]
