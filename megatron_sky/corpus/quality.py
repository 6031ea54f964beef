"""The stage `quality`: a classifier's score and a language model's perplexity, with thresholds for each language."""

import math
from pathlib import Path
from typing import Any

from datatrove.data import Document

from megatron_sky.corpus.classifier import LanguageModel, load_classifier
from megatron_sky.corpus.grams import tokens_of
from megatron_sky.corpus.ledger import power_bin
from megatron_sky.corpus.recipe import PerplexityConfig, QualityConfig
from megatron_sky.corpus.stage import Stage


class Perplexity:
    """A KenLM language model over pieces of a SentencePiece model, or over words and Chinese characters."""

    def __init__(self, config: PerplexityConfig):
        import kenlm

        self._model: Any = kenlm.Model(config.model)
        self._pieces: Any = None
        if config.tokenizer:
            from sentencepiece import SentencePieceProcessor

            self._pieces = SentencePieceProcessor(model_file=config.tokenizer)

    def __call__(self, text: str) -> float:
        """Of one token, an end of each line among them; infinite for a text without tokens."""
        logarithm, count = 0.0, 0
        for line in text.splitlines():
            tokens = self._pieces.encode(line, out_type=str) if self._pieces else tokens_of(line)
            if tokens:
                logarithm += self._model.score(" ".join(tokens))
                count += len(tokens) + 1
        return 10 ** (-logarithm / count) if count else math.inf


def score_bin(score: float) -> str:
    """The tenth of a score, as it stands in a document's metadata."""
    return str(min(9, int(score * 10)) / 10)


def perplexity_bin(perplexity: float | None) -> str:
    """The power of two below a perplexity, as it stands in a document's metadata; of an infinite one, 2^29."""
    return power_bin(1e9 if perplexity is None else min(perplexity, 1e9))


class JudgeQuality(Stage):
    """Drops documents whose score is too low or whose perplexity is out of bounds; a score weighs their quality."""

    def __init__(self, folder: Path, config: QualityConfig, keep: bool):
        super().__init__("quality", folder, keep_dropped=keep)
        self.config = config
        self._min_scores: dict[str, float] = dict(config.min_score.items())
        self._limits: dict[str, PerplexityConfig] = dict(config.perplexity.items())
        self._classifiers: dict[str, LanguageModel] = {}
        self._perplexities: dict[str, Perplexity] = {}

    def begin(self, rank: int) -> None:
        self._classifiers = load_classifier(self.config.classifier) if self.config.classifier else {}
        self._perplexities = {name: Perplexity(one) for name, one in self._limits.items()}

    def judge(self, document: Document) -> str | None:
        language = document.metadata["language"]
        return self._judge_score(document, language) or self._judge_perplexity(document, language)

    def _judge_score(self, document: Document, language: str) -> str | None:
        least = self._min_scores.get(language)
        if least is None:
            return None
        score = self._classifiers[language].score(document.text)
        document.metadata["score"] = round(score, 4)
        document.metadata["quality"] *= score
        self.account_of(document).count(f"score_{language}", score_bin(document.metadata["score"]))
        return "low_score" if score < least else None

    def _judge_perplexity(self, document: Document, language: str) -> str | None:
        if language not in self._perplexities:
            return None
        limits, perplexity = self._limits[language], self._perplexities[language](document.text)
        document.metadata["perplexity"] = round(perplexity, 1) if math.isfinite(perplexity) else None
        self.account_of(document).count(f"perplexity_{language}", perplexity_bin(document.metadata["perplexity"]))
        if perplexity > limits.max:
            return "high_perplexity"
        return "low_perplexity" if perplexity < limits.min else None
