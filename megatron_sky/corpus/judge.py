"""Stages that look at one document alone: its language, its form, personal data, benchmarks in it, and its domain."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from datatrove.data import Document

from megatron_sky.corpus.characters import count_kinds
from megatron_sky.corpus.contamination import BenchmarkIndex
from megatron_sky.corpus.grams import content_key, share_of
from megatron_sky.corpus.heuristics import judge_code, judge_pair, judge_text
from megatron_sky.corpus.language import keep_paragraphs, language_of_document
from megatron_sky.corpus.ledger import StageAccount, power_bin
from megatron_sky.corpus.privacy import mask
from megatron_sky.corpus.quality import perplexity_bin, score_bin
from megatron_sky.corpus.read import PAIR, in_domains
from megatron_sky.corpus.recipe import CorpusOutput, CorpusRecipe, HeldOutConfig, LanguageConfig
from megatron_sky.corpus.stage import Stage


class JudgeLanguage(Stage):
    """Keeps documents in the recipe's languages."""

    def __init__(self, folder: Path, config: LanguageConfig, keep: bool):
        super().__init__("language", folder, keep_dropped=keep)
        self.config = config
        self._simplify: Callable[[str], str] | None = None

    def begin(self, rank: int) -> None:
        if self.config.simplify:
            from opencc import OpenCC

            self._simplify = OpenCC("t2s").convert

    def judge(self, document: Document) -> str | None:
        language = document.metadata.get("language")
        if language not in ("code", PAIR):
            language = document.metadata["language"] = language_of_document(document.text)
        count_document(self.account_of(document), document)
        if language == "code":
            return None
        if language not in (PAIR, *self.config.keep):
            return f"language_{language}"
        if self._simplify and language in ("zh", PAIR):
            document.text = self._simplify(document.text)
        if self.config.drop_paragraphs and language != PAIR:
            document.text = keep_paragraphs(document.text, self.config.keep)
        return None if document.text else "language_mixed"


class JudgeForm(Stage):
    """The rules of `heuristics`; and what later stages go by: the document's quality, and whether it is held out."""

    def __init__(self, folder: Path, recipe: CorpusRecipe):
        super().__init__("heuristics", folder, keep_dropped=recipe.execution.keep_dropped)
        self.config, self.held_out = recipe.heuristics, recipe.held_out

    def judge(self, document: Document) -> str | None:
        metadata = document.metadata
        rule = self._rule(document, metadata["language"]) if self.config.enabled else None
        metadata.pop("pair", None)
        if rule:
            return rule
        metadata["quality"] = quality_of(document.text)
        if is_held_out(document.text, str(metadata.get("date", "")), self.held_out):
            metadata["held_out"] = True
            self.account_of(document).note("held_out")
        return None

    def _rule(self, document: Document, language: str) -> str | None:
        if language == "code":
            return judge_code(document.text, document.metadata["file"], self.config.code)
        if language == PAIR:
            zh, en = document.metadata["pair"]
            return judge_pair(zh, en, self.config.pairs)
        return judge_text(document.text, language, self.config)


def count_document(account: StageAccount, document: Document) -> None:
    """Counts a document by its length and by what has been found out about it."""
    metadata = document.metadata
    language = metadata["language"]
    account.count("characters", power_bin(len(document.text)))
    account.count("language", language)
    if "score" in metadata:
        account.count(f"score_{language}", score_bin(metadata["score"]))
    if "perplexity" in metadata:
        account.count(f"perplexity_{language}", perplexity_bin(metadata["perplexity"]))


def quality_of(text: str) -> float:
    """By which the best of equal documents is chosen: letters, weighed down by signs and by very short lines."""
    letters = count_kinds(text).letters
    lines = [line for line in text.splitlines() if line.strip()]
    long_lines = sum(len(line) >= 20 for line in lines) / max(1, len(lines))
    return float(np.float32(letters * (0.5 + 0.5 * letters / max(1, len(text))) * (0.5 + 0.5 * long_lines)))


def is_held_out(text: str, date: str, config: HeldOutConfig) -> bool:
    """By the hash of the content, the same for all copies, or by the date."""
    is_new = config.since is not None and date[: len(config.since)] >= config.since
    return is_new or (config.share > 0 and share_of(content_key(text)) < config.share)


class Mask(Stage):
    """Masks personal data; drops nothing."""

    def __init__(self, folder: Path, recipe: CorpusRecipe):
        super().__init__("privacy", folder, keep_dropped=False)
        self.config = recipe.privacy

    def judge(self, document: Document) -> str | None:
        document.text, counts = mask(document.text, self.config)
        for kind, count in counts.items():
            self.account_of(document).note(f"masked_{kind}", count)
        return None


class Decontaminate(Stage):
    """Drops documents that share a long n-gram with a benchmark."""

    def __init__(self, folder: Path, index: Path, keep: bool):
        super().__init__("decontamination", folder, keep_dropped=keep)
        self.index_path = index
        self._index: BenchmarkIndex | None = None

    def begin(self, rank: int) -> None:
        self._index = BenchmarkIndex.load(self.index_path)

    def judge(self, document: Document) -> str | None:
        assert self._index is not None
        name = self._index.benchmark_in(document.text)
        return f"benchmark_{name}" if name else None


class Route(Stage):
    """Gives each document the name of its output."""

    def __init__(self, folder: Path, outputs: tuple[CorpusOutput, ...], keep: bool):
        super().__init__("route", folder, keep_dropped=keep)
        self.outputs = outputs

    def judge(self, document: Document) -> str | None:
        output = next((output for output in self.outputs if belongs(document, output)), None)
        if output is None:
            return "no_output"
        is_held_out = document.metadata.pop("held_out", False)
        for name in ("quality", "dropped_by"):
            document.metadata.pop(name, None)
        document.metadata["output"] = f"validation/{output.name}" if is_held_out else f"text/{output.name}"
        account = self.account_of(document)
        count_document(account, document)
        account.note(document.metadata["output"])
        account.note(f"{document.metadata['output']} bytes", len(document.text.encode()))
        return None


def belongs(document: Document, output: CorpusOutput) -> bool:
    """Whether a document meets an output's rules."""
    metadata = document.metadata
    url = str(metadata.get("url", ""))
    return (
        (not output.sources or metadata["source"] in output.sources)
        and (not output.languages or metadata["language"] in output.languages)
        and (not output.hosts or in_domains(url, set(output.hosts)))
    )
