"""The language of documents and paragraphs: zh, en or other, by script and by English function words.

Script tells Chinese from all but Japanese, which kana tell, and Korean. Among texts in Latin letters English is told by
the words that are frequent in it alone; words that other languages have too ("in", "de", "an") are not counted.
"""

import re

from megatron_sky.corpus.characters import count_kinds

_WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿĀ-ſ']+")
_PARAGRAPH = re.compile(r"\n+")
LEAST_HAN = 0.2  # of letters, where a Han character counts for two
LEAST_ENGLISH = 0.12  # of words
LEAST_CHARACTERS = 100
"""Of a paragraph whose language is told; a shorter one has its document's."""
_MOST_CHARACTERS = 20_000  # of a text that are looked at
ENGLISH_WORDS = frozenset(
    """the of and to that is was for it with as by are this be from have which or not but they you were their has an at
    his her she he we been its would there will what who if when your our can more one all into out up so only some
    than them these could about other then had how each between after where most""".split()  # noqa: SIM905
)


def count_han(text: str) -> int:
    """Chinese characters."""
    return count_kinds(text).han


def count_latin(text: str) -> int:
    """Letters from A to Z."""
    return count_kinds(text).latin


def language_of(text: str) -> str:
    """`zh`, `en` or `other`; `other` too for what has no letters."""
    text = text[:_MOST_CHARACTERS]
    kinds = count_kinds(text)
    if kinds.letters == 0:
        return "other"
    weighed = 2 * kinds.han / (kinds.letters + kinds.han)
    if weighed >= LEAST_HAN:
        return "zh" if kinds.kana < 0.1 * kinds.han else "other"
    if kinds.latin < 0.8 * kinds.letters:
        return "other"
    words = _WORD.findall(text)
    num_english = sum(map(ENGLISH_WORDS.__contains__, map(str.lower, words)))
    return "en" if words and num_english >= LEAST_ENGLISH * len(words) else "other"


def paragraph_languages(text: str) -> list[tuple[str, str | None]]:
    """Each paragraph with its language, or None where it is too short to tell."""
    paragraphs = [paragraph for paragraph in _PARAGRAPH.split(text) if paragraph.strip()]
    return [
        (paragraph, language_of(paragraph) if len(paragraph) >= LEAST_CHARACTERS else None) for paragraph in paragraphs
    ]


def language_of_document(text: str) -> str:
    """That of most of its characters, by paragraphs where they are long enough, else of the whole."""
    sizes: dict[str, int] = {}
    for paragraph, language in paragraph_languages(text):
        if language is not None:
            sizes[language] = sizes.get(language, 0) + len(paragraph)
    return max(sorted(sizes), key=sizes.__getitem__) if sizes else language_of(text)


def keep_paragraphs(text: str, keep: tuple[str, ...]) -> str:
    """The text without its longer paragraphs in other languages."""
    return "\n".join(paragraph for paragraph, language in paragraph_languages(text) if language in (None, *keep))
