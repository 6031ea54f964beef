"""Rules by which a document's own text is judged, with thresholds of their own for Chinese, English and code.

A rule gives the name under which the document is dropped. The cheap rules come first. Shares of repeated lines and
n-grams are counted as in datatrove's functions, those of Gopher (arXiv 2112.11446, table A1); its filters themselves
need word tokenizers that are downloaded.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from megatron_sky.corpus.characters import count_kinds
from megatron_sky.corpus.grams import content_key, share_of, tokens_of
from megatron_sky.corpus.language import ENGLISH_WORDS, count_han, count_latin
from megatron_sky.corpus.recipe import (
    ChineseThresholds,
    CodeThresholds,
    EnglishThresholds,
    HeuristicsConfig,
    PairThresholds,
    Thresholds,
)

_SPACE = re.compile(r"\s+")
_BULLETS = ("-", "*", "•", "·", "●", "○", "■", "◆", "▪", "–", ">", "※", "★")
_ELLIPSES = ("...", "…", "。。。", "……", "[更多]", "[详细]")
_ENDS = tuple(".!?。！？”\"'…；;：:）)」』")
_CHINESE_WORDS = frozenset("的了是在和有我不这也就都而及与着或一个上为以到他要会对可")
_MOJIBAKE = re.compile(
    r"\ufffd|锟斤拷|烫烫烫|屯屯屯|Ã[\x80-\xbf©¨ª]|â€[™œ\x9d“”]|[ÐÑ][\x80-\xbf]|(?:[èéåæçä][\x80-\xbf¼½¾¿]){2}"
)
_CHINESE_ADS = re.compile(
    "加微信|微信号|扫码|免费咨询|在线客服|点击进入|立即购买|全国包邮|代开发票|招商加盟|加盟热线|咨询热线|优惠券|百家乐|"
    "时时彩|娱乐城|博彩|棋牌|老虎机|彩票平台|开户送|无码|成人视频|办证|刷单|网赚|代写论文|一夜情|SEO优化|关键词排名|友情链接|"
    "下载APP|关注公众号|长按识别|返回搜狐|责任编辑|版权所有|ICP备"
)
_ENGLISH_ADS = re.compile(
    r"\b(?:click here|buy now|order now|free shipping|add to cart|limited time offer|best price|cheap \w+ online|"
    r"sign up (?:now|today)|subscribe now|online casino|casino bonus|payday loans?|viagra|cialis|all rights reserved|"
    r"cookie policy|privacy policy|terms of (?:use|service)|backlinks?|seo services|lorem ipsum|download now|"
    r"act now|100% free|money back guarantee|unsubscribe)\b",
    re.IGNORECASE,
)
_IN_ENGLISH_ADS = (
    *(
        "click here",
        "buy now",
        "order now",
        "free shipping",
        "add to cart",
        "limited time offer",
        "best price",
        "cheap ",
    ),
    *("sign up ", "subscribe now", "online casino", "casino bonus", "payday loan", "viagra", "cialis", "backlink"),
    *("all rights reserved", "cookie policy", "privacy policy", "terms of use", "terms of service", "seo services"),
    *("lorem ipsum", "download now", "act now", "100% free", "money back guarantee", "unsubscribe"),
)
"""Each phrase of `_ENGLISH_ADS` holds one of them."""
_SHORT_LINE = 40  # characters; a Chinese character counts for two
_GRAM = {"zh": 20, "en": 10}
_MARKUP = {".json": "json", ".xml": "xml", ".yaml": "yaml", ".yml": "yaml", ".html": "html", ".htm": "html"}


def judge_text(text: str, language: str, config: HeuristicsConfig) -> str | None:
    """The rule that the text breaks first; None where it breaks none. Other languages have English's rules of form."""
    thresholds = config.zh if language == "zh" else config.en
    rules = (_lengths, _signs, _words, _lines, _phrases, _repetitions)
    return next((rule for check in rules for rule in check(text, language, thresholds)), None)


def _lengths(text: str, language: str, limits: Thresholds) -> Iterator[str]:
    length = len(text) - count_kinds(text).spaces
    if length < limits.min_length:
        yield "too_short"
    if length > limits.max_length:
        yield "too_long"


def _signs(text: str, language: str, limits: Thresholds) -> Iterator[str]:
    kinds = count_kinds(text)
    solid = len(text) - kinds.spaces
    if solid - kinds.alphanumeric - kinds.common_signs > limits.max_symbol_share * solid:
        yield "symbols"
    if kinds.digits > limits.max_digit_share * solid:
        yield "digits"


def _words(text: str, language: str, limits: Thresholds) -> Iterator[str]:
    if isinstance(limits, ChineseThresholds):
        if len(_CHINESE_WORDS.intersection(text)) < limits.min_stop_words:
            yield "stop_words"
        return
    assert isinstance(limits, EnglishThresholds)
    words = tokens_of(text)
    mean = sum(map(len, words)) / max(1, len(words))
    if not limits.min_mean_word <= mean <= limits.max_mean_word:
        yield "word_length"
    if language == "en" and len(ENGLISH_WORDS.intersection(words)) < limits.min_stop_words:
        yield "stop_words"


def _lines(text: str, language: str, limits: Thresholds) -> Iterator[str]:
    from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if _share(lines, lambda line: line.startswith(_BULLETS)) > limits.max_bullet_share:
        yield "bullets"
    if _share(lines, lambda line: line.endswith(_ELLIPSES)) > limits.max_ellipsis_share:
        yield "ellipses"
    repeated, characters = find_duplicates(lines)
    if repeated > limits.max_repeated_lines * len(lines):
        yield "repeated_lines"
    if characters > limits.max_repeated_line_characters * sum(map(len, lines)):
        yield "repeated_line_characters"
    width = 2 if language == "zh" else 1
    is_item = lambda line: len(line) * width < _SHORT_LINE and not line.endswith(_ENDS)  # noqa: E731
    if len(lines) >= 5 and _share(lines, is_item) > limits.max_list_share:
        yield "list"


def _share(lines: list[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, lines)) / max(1, len(lines))


def _phrases(text: str, language: str, limits: Thresholds) -> Iterator[str]:
    per_thousand = 1000 / max(1, len(text))
    if not text.isascii() and len(_MOJIBAKE.findall(text)) * per_thousand > limits.max_mojibake:
        yield "mojibake"
    if language != "zh" and not _may_advertise(text):
        return
    advertisements = _CHINESE_ADS if language == "zh" else _ENGLISH_ADS
    if len(advertisements.findall(text)) * per_thousand > limits.max_advertisements:
        yield "advertisements"


def _may_advertise(text: str) -> bool:
    """Whether `_ENGLISH_ADS`, which is slow, can find anything; it takes dotless and dotted capital i for an i."""
    folded = text.casefold()
    return any(map(folded.__contains__, _IN_ENGLISH_ADS)) or "\u0131" in text or "\u0130" in text


def _repetitions(text: str, language: str, limits: Thresholds) -> Iterator[str]:
    tokens = tokens_of(text)
    repeated = repeated_characters(tokens, _GRAM["zh" if language == "zh" else "en"])
    if repeated > limits.max_repeated_grams * sum(map(len, tokens)):
        yield "repeated_grams"


def repeated_characters(tokens: Sequence[str], size: int) -> int:
    """Characters in n-grams that came before, which do not overlap: datatrove's `find_all_duplicate`, but faster."""
    joined = "".join(tokens)
    starts = list(itertools.accumulate(map(len, tokens), initial=0))
    grams = [joined[start:end] for start, end in zip(starts, starts[size:], strict=False)]
    if len(set(grams)) == len(grams):
        return 0
    seen: set[str] = set()
    repeated = index = 0
    while index < len(grams):
        if grams[index] in seen:
            repeated += len(grams[index])
            index += size
        else:
            seen.add(grams[index])
            index += 1
    return repeated


def judge_pair(zh: str, en: str, limits: PairThresholds) -> str | None:
    """The rule that a Chinese and an English text break first as each other's translation; None where they break none.

    The length of texts of fewer than five characters says nothing of them.
    """
    sizes = [len(_SPACE.sub("", side)) for side in (zh, en)]
    if min(sizes) < limits.min_length:
        return "pair_too_short"
    letters = [max(1, sum(map(str.isalpha, side))) for side in (zh, en)]
    if min(count_han(zh) / letters[0], count_latin(en) / letters[1]) < limits.min_script_share:
        return "pair_script"
    if sizes[0] >= 5 and not limits.min_ratio <= sizes[1] / sizes[0] <= limits.max_ratio:
        return "pair_ratio"
    return None


def judge_code(text: str, path: str, limits: CodeThresholds) -> str | None:
    """The rule that a source file breaks first; None where it breaks none. `path` gives its kind by the ending."""
    lines = text.splitlines() or [""]
    if max(map(len, lines)) > limits.max_line:
        return "longest_line"
    if sum(map(len, lines)) > limits.max_mean_line * len(lines):
        return "mean_line"
    if sum(map(str.isalnum, text)) < limits.min_alphanumeric_share * len(text):
        return "alphanumeric"
    kind = _MARKUP.get(path[path.rfind(".") :].lower()) if "." in path else None
    kept = limits.markup_shares.get(kind, 1.0) if kind else 1.0  # type: ignore[call-overload]  # its keys are the kinds
    return f"share_of_{kind}" if kept < 1 and share_of(content_key(text)) >= kept else None
