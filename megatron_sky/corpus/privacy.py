"""Personal data in a text, masked in place: what was there can be seen by its kind, not by its content."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from megatron_sky.corpus.recipe import PrivacyConfig

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]|\.\d)")
_CHINESE_ID = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])"
)
_SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_CHINESE_MOBILE = re.compile(
    r"(?<![\d.-])(?:\+?86[- ]?)?1[3-9]\d(?P<gap>[- ]?)\d{4}(?P=gap)\d{4}(?!\d|[.-]\d|[A-Za-z])"
)
_CHINESE_LANDLINE = re.compile(r"(?<![\d-])(?:\(0\d{2,3}\)|0\d{2,3}-)[2-9]\d{6,7}(?![\d-])")
_AMERICAN_PHONE = re.compile(
    r"(?<![A-Za-z0-9_(.-])(?:\+?1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}(?![A-Za-z0-9_-])"
)
_NUMBER = re.compile(r"\d{4}")  # which every id and telephone number holds
_DOTTED = re.compile(r"\d\.\d")  # which every internet address holds
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # of the digits of an identity number, GB 11643


def mask(text: str, config: PrivacyConfig) -> tuple[str, Counter[str]]:
    """The text with `<email>`, `<phone>`, `<id>`, `<ip>` for what it had, and how many of each."""
    counts: Counter[str] = Counter()
    has_at, has_number, has_dot = "@" in text, _NUMBER.search(text), _DOTTED.search(text)
    may_be = {"email": has_at, "id": has_number, "phone": has_number, "ip": has_dot}
    for kind, pattern, is_valid in _rules(config):
        if not may_be[kind]:  # looking for the whole pattern is slow
            continue
        text = pattern.sub(_replacement(kind, is_valid, counts), text)
    return text, counts


def _rules(config: PrivacyConfig) -> list[tuple[str, re.Pattern[str], Callable[[str], bool]]]:
    rules: list[tuple[str, re.Pattern[str], Callable[[str], bool]]] = []
    if config.emails:
        rules.append(("email", _EMAIL, _always))
    if config.ids:
        rules += [("id", _CHINESE_ID, _is_identity_number), ("id", _SOCIAL_SECURITY, _always)]
    if config.ips:
        rules.append(("ip", _IP, _is_public))
    if config.phones:
        patterns = (_CHINESE_MOBILE, _CHINESE_LANDLINE, _AMERICAN_PHONE)
        rules += [("phone", pattern, _always) for pattern in patterns]
    return rules


def _replacement(kind: str, is_valid: Callable[[str], bool], counts: Counter[str]) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        if not is_valid(match.group()):
            return match.group()
        counts[kind] += 1
        return f"<{kind}>"

    return replace


def _always(text: str) -> bool:
    return True


def _is_identity_number(number: str) -> bool:
    """Whether the last sign agrees with the others, by the rule of GB 11643."""
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number, strict=False))
    return "10X98765432"[total % 11] == number[-1].upper()


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:  # a version number, or another that only looks like one
        return False
