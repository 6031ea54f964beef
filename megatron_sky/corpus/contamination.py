"""Benchmarks as the hashes of their n-grams, and documents that share one.

Words of 13 are the usual size for English; 13 Chinese characters are a phrase, so theirs are twice as long. A text that
is shorter than one n-gram can't be told from chance and is passed over, counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.corpus.grams import gram_hashes, tokens_of
from megatron_sky.corpus.language import language_of
from megatron_sky.corpus.recipe import DecontaminationConfig
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import parse_json, replacing

CHINESE_TIMES = 2


@dataclass(frozen=True)
class BenchmarkIndex:
    """Sorted hashes, and of each the number of its benchmark in `names`.

    Attributes:
        sizes: n-gram sizes, of English and of Chinese.
        num_items, num_passed_over: texts of each benchmark, and those that are too short.
    """

    names: tuple[str, ...]
    hashes: np.ndarray
    numbers: np.ndarray
    sizes: tuple[int, int]
    num_items: tuple[int, ...]
    num_passed_over: tuple[int, ...]

    @classmethod
    def build(cls, config: DecontaminationConfig) -> "BenchmarkIndex":
        """Raises ConfigError for files that can't be used."""
        sizes = (config.gram_size, CHINESE_TIMES * config.gram_size)
        numbers: dict[int, int] = {}
        items, passed_over = [], []
        problems: list[Problem] = []
        for number, benchmark in enumerate(config.benchmarks):
            texts: list[str] = []
            for path in benchmark.paths:
                _read_texts(path, benchmark.keys, texts, problems)
            too_short = 0
            for text in texts:
                tokens, size = tokens_of(text), sizes[language_of(text) == "zh"]
                too_short += len(tokens) < size
                if len(tokens) >= size:
                    for gram in gram_hashes(text, size).tolist():
                        numbers.setdefault(gram, number)
            items.append(len(texts))
            passed_over.append(too_short)
        if problems:
            raise ConfigError(problems)
        hashes = np.array(sorted(numbers), dtype=np.uint64)
        order = np.array([numbers[int(key)] for key in hashes], dtype=np.int32)
        names = tuple(benchmark.name for benchmark in config.benchmarks)
        return cls(names, hashes, order, sizes, tuple(items), tuple(passed_over))

    def save(self, path: Path) -> None:
        with replacing(path) as file:
            np.savez(
                file,
                names=np.array(self.names, dtype=str),
                hashes=self.hashes,
                numbers=self.numbers,
                sizes=self.sizes,
                num_items=self.num_items,
                num_passed_over=self.num_passed_over,
            )

    @classmethod
    def load(cls, path: Path) -> "BenchmarkIndex":
        with np.load(path) as file:
            names = tuple(map(str, file["names"]))
            english, chinese = map(int, file["sizes"])
            counts = (tuple(map(int, file[name])) for name in ("num_items", "num_passed_over"))
            return cls(names, file["hashes"], file["numbers"], (english, chinese), *counts)

    def benchmark_in(self, text: str) -> str | None:
        """The name of the first benchmark, in their order, of which the text has an n-gram."""
        tokens = tokens_of(text)
        shared: list[int] = []
        for size in self.sizes:
            if len(tokens) >= size and self.hashes.size:
                grams = gram_hashes(text, size)
                places = np.minimum(np.searchsorted(self.hashes, grams), self.hashes.size - 1)
                shared += self.numbers[places[self.hashes[places] == grams]].tolist()
        return self.names[min(shared)] if shared else None


def _read_texts(path: str, keys: Sequence[str], texts: list[str], problems: list[Problem]) -> None:
    where = "decontamination.benchmarks"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(where, f"can't be read: {error}", "give a JSONL file", path))
        return
    for number, line in enumerate(lines, 1):
        try:
            value = parse_json(line) if line.strip() else None
        except ValueError:
            problems.append(Problem(where, f"{path}:{number} is no JSON", "give a JSONL file"))
            return
        if value is None:
            continue
        parts = [value.get(key) for key in keys] if isinstance(value, dict) else []
        strings = [part for part in parts if isinstance(part, str)]
        if not strings:
            fix = f"name its fields with keys (now: {', '.join(keys)})"
            problems.append(Problem(where, f"{path}:{number} has no text", fix))
            return
        texts.append(" ".join(strings))
