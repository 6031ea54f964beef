"""Which language a text is in, by its letters alone."""

from collections import Counter


def language_of(text: str) -> str:
    """One of `LANGUAGES`, by the script of a text's letters and their share in it."""
    counts = Counter(_script(char) for char in text if not char.isspace())
    total = counts.total()
    letters = counts["zh"] + counts["en"] + counts["other"]
    if total == 0 or letters < 0.6 * total:
        return "code and numbers" if counts["zh"] <= 0.3 * total else "zh"
    if counts["zh"] > 0.3 * letters:
        return "zh"
    return "en" if counts["en"] >= 0.5 * letters else "other"


LANGUAGES = ("zh", "en", "code and numbers", "other")


def _script(char: str) -> str:
    if "\u3400" <= char <= "\u9fff":
        return "zh"
    if char.isascii():
        return "en" if char.isalpha() else "sign"
    return "other" if char.isalpha() else "sign"
