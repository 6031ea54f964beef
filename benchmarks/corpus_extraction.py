"""Main text of twelve pages, six English and six Chinese, against what a person marked in them: F1 of tokens.

    python benchmarks/corpus_extraction.py [--engine resiliparse trafilatura] [--show news_en]

The pages (`extraction/*.html`) were written for this: news with menus, related links and comments, a forum, manuals
with code, tables, blogs with lists, encyclopedias; in UTF-8, GBK and Latin-1 as their own `charset` says. What stands
between the signs ⟦ and ⟧ is the text that a corpus should have. It was marked before any extractor had seen the pages:
titles, paragraphs, lists, tables, code, and the posts of a forum; without bylines, captions, info boxes, references,
comments below articles, and whatever leads elsewhere. The signs are taken out, and the page goes through the pipeline's
own decoder and extractor. Tokens are English words and single Chinese characters, counted as a bag; "4-grams" does the
same with four tokens in a row, so that text in another order, or with something in between, counts as wrong.
"""

import argparse
import html
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parent / "extraction"
_MARKED = re.compile("⟦(.*?)⟧", re.DOTALL)
_TAG = re.compile("<[^<>]*>")
_BREAK = re.compile(r"<(?:br|p|div|li|tr|td)\b[^<>]*>", re.IGNORECASE)
_CHARSET = re.compile(r'charset="?([\w-]+)')
NAMES = {"gb2312": "gb18030", "gbk": "gb18030"}


@dataclass(frozen=True)
class Score:
    """One page's: precision, recall and F1 of tokens, and F1 of four tokens in a row."""

    precision: float
    recall: float
    f1: float
    f1_of_grams: float


def read_page(path: Path) -> tuple[bytes, str]:
    """A page as a server would send it, and its main text as it was marked."""
    marked = path.read_text(encoding="utf-8")
    page = re.sub("[⟦⟧]", "", marked)
    found = _CHARSET.search(page)
    assert found, f"{path} names no charset"
    parts = (html.unescape(_TAG.sub("", _BREAK.sub("\n", part))) for part in _MARKED.findall(marked))
    return page.encode(NAMES.get(found[1].lower(), found[1])), "\n".join(parts)


def extract(content: bytes, engine: str) -> str:
    """The page's main text, as the corpus pipeline takes it."""
    from megatron_sky.corpus.decode import decode
    from megatron_sky.corpus.extract import build_extractor, clean
    from megatron_sky.corpus.recipe import ExtractConfig

    decoded = decode(content, "")
    assert decoded is not None
    return clean(build_extractor(ExtractConfig(engine=engine)).extract(decoded.text) or "")


def score(text: str, reference: str) -> Score:
    from megatron_sky.corpus.grams import grams_of, tokens_of

    bags = [Counter(tokens_of(one)) for one in (text, reference)]
    precision, recall, f1 = _overlap(*bags)
    grams = [Counter(grams_of(tokens_of(one), 4)) for one in (text, reference)]
    return Score(precision, recall, f1, _overlap(*grams)[2])


def _overlap(given: Counter, wanted: Counter) -> tuple[float, float, float]:
    both = (given & wanted).total()
    if not both:
        return 0.0, 0.0, 0.0
    precision, recall = both / given.total(), both / wanted.total()
    return precision, recall, 2 * precision * recall / (precision + recall)


def score_pages(engine: str) -> dict[str, Score]:
    """Of all pages, by name."""
    scores = {}
    for path in sorted(PAGES.glob("*.html")):
        content, reference = read_page(path)
        scores[path.stem] = score(extract(content, engine), reference)
    return scores


def mean_f1(scores: dict[str, Score], language: str, field: str = "f1") -> float:
    values = [getattr(one, field) for name, one in scores.items() if name.endswith(f"_{language}")]
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", choices=("resiliparse", "trafilatura"), default=["resiliparse"])
    parser.add_argument("--show", help="print what is taken from this page and what was marked in it")
    args = parser.parse_args()
    for engine in args.engine:
        if args.show:
            content, reference = read_page(PAGES / f"{args.show}.html")
            print(f"--- {engine}\n{extract(content, engine)}\n--- marked\n{reference}")
            continue
        scores = score_pages(engine)
        print(f"{engine:18}{'precision':>10}{'recall':>9}{'F1':>9}{'4-grams':>9}")
        for name, one in scores.items():
            print(f"{name:18}{one.precision:10.3f}{one.recall:9.3f}{one.f1:9.3f}{one.f1_of_grams:9.3f}")
        for language in ("en", "zh"):
            means = mean_f1(scores, language), mean_f1(scores, language, "f1_of_grams")
            print(f"{f'mean {language}':18}{'':19}{means[0]:9.3f}{means[1]:9.3f}")


if __name__ == "__main__":
    main()
