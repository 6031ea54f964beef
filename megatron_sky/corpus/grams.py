"""Text as a list of comparable tokens: words of scripts with spaces, single characters of Chinese; and their n-grams.

One cut for all texts, so that a document in both languages needs no choice: a Chinese n-gram is one of characters, an
English one is one of words. Case, width, punctuation and white space make no difference.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")


@functools.lru_cache(maxsize=1)  # several steps in a row ask for those of the same document
def tokens_of(text: str) -> list[str]:
    """`["今", "天", "2023", "word"]` of `"今天 2023, Word!"`; not to be changed."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def grams_of(tokens: Sequence[str], size: int) -> Iterator[str]:
    """The n-grams, joined by spaces; of a text shorter than one, all of it."""
    if 0 < len(tokens) <= size:
        yield " ".join(tokens)
        return
    for start in range(len(tokens) - size + 1):
        yield " ".join(tokens[start : start + size])


def hash_text(text: str) -> int:
    """64 bits of XXH3."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def gram_hashes(text: str, size: int) -> np.ndarray:
    """The different n-grams of a text as sorted 64-bit hashes, `[number of n-grams]`."""
    tokens = tokens_of(text)
    joined = " ".join(tokens).encode()
    starts = list(
        itertools.accumulate(map(len, map(str.encode, tokens)), lambda start, length: start + length + 1, initial=0)
    )
    ends = [start - 1 for start in starts[size:] or starts[1:][-1:]]  # of a text shorter than an n-gram, all of it
    parts = map(joined.__getitem__, map(slice, starts, ends))
    return np.unique(np.fromiter(map(xxhash.xxh3_64_intdigest, parts), dtype=np.uint64))


def content_key(text: str) -> int:
    """Equal for texts of the same letters and digits."""
    return hash_text(" ".join(tokens_of(text)))


def share_of(key: int) -> float:
    """A number in [0, 1) that follows from a hash: by which a share of documents is chosen."""
    return (hash_text(f"share {key}") >> 11) / (1 << 53)
