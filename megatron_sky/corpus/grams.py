"""Text as a list of comparable tokens: words of scripts with spaces, single characters of Chinese; and their n-grams.

One cut for all texts, so that a document in both languages needs no choice: a Chinese n-gram is one of characters, an
English one is one of words. Case, width, punctuation and white space make no difference.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")


def tokens_of(text: str) -> list[str]:
    """`["今", "天", "2023", "word"]` of `"今天 2023, Word!"`."""
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
    hashes = np.fromiter(map(hash_text, grams_of(tokens_of(text), size)), dtype=np.uint64)
    return np.unique(hashes)


def content_key(text: str) -> int:
    """Equal for texts of the same letters and digits."""
    return hash_text(" ".join(tokens_of(text)))


def share_of(key: int) -> float:
    """A number in [0, 1) that follows from a hash: by which a share of documents is chosen."""
    return (hash_text(f"share {key}") >> 11) / (1 << 53)
