"""Bytes of a page as text: what they are, not what their header says.

Strict UTF-8 comes first, since text of another encoding is next to never valid UTF-8 by chance, and pages declared as
GBK or ISO-8859-1 are often UTF-8. Otherwise the declared encodings, and those of Chinese pages, are tried strictly;
of several that fit the one whose characters are the most frequent ones wins.
"""

import codecs
import re
from dataclasses import dataclass

_META = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_\-]+)""", re.IGNORECASE)
_HEADER = re.compile(r"""charset\s*=\s*["']?\s*([A-Za-z0-9_\-]+)""", re.IGNORECASE)
_HEAD_BYTES = 4096
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_ALIASES = {"gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "big5": "big5hkscs", "iso-8859-1": "cp1252"}
_ALIASES |= {"latin-1": "cp1252", "latin1": "cp1252", "ascii": "cp1252", "us-ascii": "cp1252", "utf8": "utf-8"}
_TRIED = ("gb18030", "big5hkscs", "cp1252")
_MOST_BROKEN = 0.01  # of a page's characters that may be lost where no encoding fits wholly
_COMMON = set("的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里")
_COMMON |= set("們來為國說時會對過發後裡這個無與學實體開關問題經濟業長現點電機動車東書見話語請讓還應該將從當")


@dataclass(frozen=True)
class Decoded:
    """A page's text, the encoding it is in, and whether that is another one than its header or meta element says."""

    text: str
    encoding: str
    is_mislabelled: bool


def decode(content: bytes, content_type: str = "") -> Decoded | None:
    """The text of a page; None where no encoding fits. `content_type`: the HTTP header of that name."""
    declared = _declared(content, content_type)
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return Decoded(content.decode(encoding, "replace"), encoding, False)
    named = [encoding for encoding in (_codec(name) for name in declared) if encoding]
    if (text := _strict(content, "utf-8")) is not None:
        return Decoded(text, "utf-8", bool(named) and "utf-8" not in named and not text.isascii())
    fitting = {encoding: text for encoding in (*named, *_TRIED) if (text := _strict(content, encoding)) is not None}
    if fitting:
        best = max(fitting, key=lambda encoding: _score(fitting[encoding], encoding in named))
        return Decoded(fitting[best], best, bool(named) and best not in named)
    return _nearly(content, named)


def _nearly(content: bytes, named: list[str]) -> Decoded | None:
    """The encoding with the fewest places that don't fit, as of a page that was cut within a character."""
    tried = dict.fromkeys(("utf-8", *named, *_TRIED))
    texts = {encoding: content.decode(encoding, "replace") for encoding in tried}
    best = min(texts, key=lambda encoding: texts[encoding].count("\ufffd"))
    if texts[best].count("\ufffd") > _MOST_BROKEN * len(texts[best]) + 1:
        return None
    return Decoded(texts[best], best, bool(named) and best not in named)


def _declared(content: bytes, content_type: str) -> list[str]:
    names = [match.group(1) for match in [_HEADER.search(content_type)] if match]
    return names + [name.decode("ascii") for name in _META.findall(content[:_HEAD_BYTES])]


def _codec(name: str) -> str | None:
    """Python's name of an encoding; the wider one where pages name a part of it. None for an unknown one."""
    known = _ALIASES.get(name.lower(), name.lower())
    try:
        return codecs.lookup(known).name if codecs.lookup(known)._is_text_encoding else None  # type: ignore[attr-defined]
    except LookupError:
        return None


def _strict(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except (UnicodeDecodeError, UnicodeError):  # another encoding is tried
        return None


def _score(text: str, is_declared: bool) -> float:
    """The share of frequent Chinese characters among those that are not ASCII, of rare ones the other way."""
    others = [char for char in text[:20_000] if not char.isascii()]
    if not others:
        return 1.0 + is_declared
    common = sum(char in _COMMON for char in others) / len(others)
    odd = sum(char < "\u00c0" or "\ue000" <= char <= "\uf8ff" or ord(char) > 0xFFFF for char in others) / len(others)
    return common - odd + 0.05 * is_declared
