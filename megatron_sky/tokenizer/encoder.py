"""Ids of many texts at once: gigatoken where it is installed, the tokenizer's own library elsewhere.

gigatoken gives the same ids for ordinary text and is many times as fast, but it looks for control tokens inside a text
(where `</s>` is just four characters). Texts that hold one go through the library, and so does a sample of all others:
the first difference stops the work.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from megatron_sky.errors import DataError, MissingDependency
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, TiktokenTokenizer, Tokenizer, any_of, gigatoken_for


class BatchEncoder:
    """Ids of many texts at once.

    Args:
        tokenizer: decides the ids.
        fast: True needs gigatoken, False does without, None takes it where it is installed.
        parse_special: see `Tokenizer.encode`.
        check_every: one text in so many is encoded by the tokenizer's own library too and compared.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, fast: bool | None = None, parse_special: bool = False, check_every: int = 512
    ):
        self.tokenizer = tokenizer
        self.parse_special = parse_special
        self.check_every = check_every
        self._fast = None if fast is False else _fast_library(tokenizer, needed=fast is True)
        self._special = any_of(tokenizer.special_texts)
        self._control_ids = np.array(sorted(tokenizer.control_tokens.values()), np.int64)
        self._seen = 0

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in a row (uint32 or int64), and the number of ids of each (int64)."""
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        if self._fast is None:
            return _joined([self._encode(text) for text in texts])
        flat, lengths = _encode_fast(self._fast, texts)
        ends = np.cumsum(lengths)
        special = self._with_special(texts) | self._with_control(flat, ends)
        compared = set(range(-self._seen % self.check_every, len(texts), self.check_every))
        self._seen += len(texts)
        replaced = {}
        for number in sorted(special | compared):
            expected = self._encode(texts[number])
            if number in special:
                replaced[number] = expected
            elif flat[ends[number] - lengths[number] : ends[number]].tolist() != expected:
                raise DataError(
                    f"gigatoken and the tokenizer {self.tokenizer.name} give different ids for the text that begins "
                    f"{texts[number][:80]!r}\n  fix: run with --encoder library, and please report this text"
                )
        return _with_replaced(flat, lengths, ends, replaced)

    def _with_special(self, texts: Sequence[str]) -> set[int]:
        """The texts that spell a special token."""
        if self._special is None:
            return set()
        search = self._special.search
        return {number for number, text in enumerate(texts) if search(text)}

    def _with_control(self, flat: np.ndarray, ends: np.ndarray) -> set[int]:
        """The texts of which a control token was made."""
        return set(np.searchsorted(ends, np.flatnonzero(np.isin(flat, self._control_ids)), side="right").tolist())

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, parse_special=self.parse_special)


def _encode_fast(library, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    import awkward

    ids = library.encode_batch(list(texts), parallel=False)
    return awkward.to_numpy(awkward.flatten(ids)), awkward.to_numpy(awkward.num(ids)).astype(np.int64)


def _with_replaced(
    flat: np.ndarray, lengths: np.ndarray, ends: np.ndarray, replaced: dict[int, list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    if not replaced:
        return flat, lengths
    parts, at = [], 0
    for number, ids in replaced.items():
        parts += [flat[at : ends[number] - lengths[number]], np.array(ids, dtype=flat.dtype)]
        at = ends[number]
    lengths = lengths.copy()
    lengths[list(replaced)] = [len(ids) for ids in replaced.values()]
    return np.concatenate([*parts, flat[at:]]), lengths


def _joined(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum())), lengths


def _fast_library(tokenizer: Tokenizer, *, needed: bool):
    if isinstance(tokenizer, TiktokenTokenizer):
        return tokenizer.library
    try:
        gigatoken = gigatoken_for("the fast encoder")
    except MissingDependency:
        if needed:
            raise
        return None
    make = gigatoken.Tokenizer.from_json
    if isinstance(tokenizer, SentencePieceTokenizer):
        make = gigatoken.Tokenizer.from_sentencepiece
    try:
        return make(tokenizer.data)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if needed:
            raise DataError(f"gigatoken can't read the tokenizer {tokenizer.name}: {error}") from error
        return None
