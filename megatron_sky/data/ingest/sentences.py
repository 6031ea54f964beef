"""Cutting documents into sentences, for token files whose sequences are sentences.

Latin text goes through nltk's Punkt, whose parameters are learnt from the user's own text, so that nothing is fetched;
Chinese text ends a sentence at its own marks, with the closing quotes and brackets after them.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

from megatron_sky.errors import MissingDependency

TRAIN_CHARACTERS = 4_000_000  # of text that Punkt learns from
_CHINESE_END = re.compile(r"(?<=[。！？；…])(?![。！？；…”’」』）》])|(?<=[。！？；…][”’」』）》])(?![”’」』）》])")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def learn_punkt(texts: Iterable[str]) -> object:
    """Punkt's parameters (abbreviations, collocations, sentence starters) learnt from the first texts; picklable."""
    try:
        from nltk.tokenize.punkt import PunktTrainer
    except ImportError:
        raise MissingDependency("nltk", "splitting sentences", "pip install nltk") from None
    trainer, done = PunktTrainer(), 0
    for text in texts:
        trainer.train(text, finalize=False)
        done += len(text)
        if done >= TRAIN_CHARACTERS:
            break
    return trainer.get_params()


class SentenceSplitter:
    """Splits a text, by its script, into sentences.

    Args:
        punkt: parameters from `learn_punkt`.
        keep_newlines: leave the white space after a sentence with it, so that the sentences join to the text.
    """

    def __init__(self, punkt: object, *, keep_newlines: bool = False):
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        self._punkt = PunktSentenceTokenizer(punkt)
        self._keep_newlines = keep_newlines

    def __call__(self, text: str) -> list[str]:
        starts = [0]
        for begin, end in self._spans(text):
            if _CHINESE.search(text, begin, end):
                starts += [begin + cut.start() for cut in _CHINESE_END.finditer(text[begin:end])]
            starts.append(begin)
        bounds = [*sorted(set(starts)), len(text)]
        parts = (text[begin:end] for begin, end in pairwise(bounds))
        if not self._keep_newlines:
            parts = (part.strip() for part in parts)
        return [part for part in parts if part]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return list(self._punkt.span_tokenize(text))
