"""The language of documents and paragraphs: zh, en or other, by script and by English function words.

Script tells Chinese from all but Japanese, which kana tell, and Korean. Among texts in Latin letters English is told by
the words that are frequent in it alone; words that other languages have too ("in", "de", "an") are not counted.
"""

import re

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9d]")
_LATIN = re.compile(r"[A-Za-z]")
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
    return len(_HAN.findall(text))


def count_latin(text: str) -> int:
    """Letters from A to Z."""
    return len(_LATIN.findall(text))


def language_of(text: str) -> str:
    """`zh`, `en` or `other`; `other` too for what has no letters."""
    text = text[:_MOST_CHARACTERS]
    han, latin = count_han(text), count_latin(text)
    letters = sum(map(str.isalpha, text))
    if letters == 0:
        return "other"
    weighed = 2 * han / (letters + han)
    if weighed >= LEAST_HAN:
        return "zh" if len(_KANA.findall(text)) < 0.1 * han else "other"
    if latin < 0.8 * letters:
        return "other"
    words = [word.lower() for word in _WORD.findall(text)]
    return "en" if words and sum(word in ENGLISH_WORDS for word in words) >= LEAST_ENGLISH * len(words) else "other"


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
