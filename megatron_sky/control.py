"""Control characters in what comes from files: a terminal and a script would obey them."""

import re

# C0, DEL and C1, and what reorders the text around it (marks of direction too) or ends a line in some readers; tabs and
# line ends among them. U+DC80 to U+DC9F stand for bytes of C1 in a file's name that is no UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\udc80-\udc9f]")


def find_control(text: str) -> str | None:
    """The first control character in a text, as it is written in Python; None where there is none."""
    match = _CONTROL.search(text)
    return None if match is None else ascii(match.group())


def visible(text: str) -> str:
    """The text with its control characters written out, but for tabs and line ends."""
    return _CONTROL.sub(lambda match: match.group() if match.group() in "\n\t" else ascii(match.group())[1:-1], text)
