"""A linear classifier of text quality over hashed n-grams, one for each language, and its file.

n-grams are those of `grams`' tokens, words and single Chinese characters. Each different one of a text's beginning adds
its weight, the sum is divided by the square root of their number, and a logistic curve makes a score in (0, 1) of it.
docs/formats.md gives the file's bytes and the hash: scores need numpy and xxhash alone.
"""

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash

from megatron_sky.corpus.grams import hash_text, tokens_of
from megatron_sky.errors import DataError
from megatron_sky.files import json_text, parse_json, read_bytes, replacing
from megatron_sky.records import BadRecord, read_record

MAGIC = b"SKYQUAL\x00"
VERSION = 1
HEADER = struct.Struct("<8sQQ")  # magic, version, bytes of the description
MOST_CHARACTERS = 20_000
"""Of a text that are looked at."""
ORDERS = {"zh": 3, "en": 2}
"""Longest n-gram: Chinese characters, words."""
BITS = 20
"""Of the number of weights."""
_STEP, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_FIX = "make it again with `megatron-sky corpus train-classifier`, or copy it again"


@dataclass(frozen=True)
class Row:
    """Of the held-out documents: what a threshold gives."""

    threshold: float
    precision: float
    recall: float
    negatives_kept: float


@dataclass(frozen=True)
class Facts:
    """What a language's classifier was trained on and how it does on documents that it has not seen.

    Attributes:
        positives, negatives: documents trained on.
        held_out_positives, held_out_negatives: documents that `area` and `table` are about.
        area: under the ROC curve: the chance that a positive has a higher score than a negative.
    """

    positives: int = 0
    negatives: int = 0
    held_out_positives: int = 0
    held_out_negatives: int = 0
    area: float = 0.5
    table: tuple[Row, ...] = ()


@dataclass(frozen=True)
class LanguageModel:
    """`weights`: float32 `[2**bits]`; `order`: longest n-gram."""

    order: int
    bias: float
    facts: Facts
    weights: np.ndarray

    def score(self, text: str) -> float:
        buckets = buckets_of(text, self.order, self.bits)
        total = float(self.weights[buckets].sum(dtype=np.float64)) / max(1, len(buckets)) ** 0.5 + self.bias
        return float(1 / (1 + np.exp(-total)))

    @property
    def bits(self) -> int:
        return len(self.weights).bit_length() - 1


def buckets_of(text: str, order: int, bits: int) -> np.ndarray:
    """The different places of a text's n-grams of 1 to `order` tokens, sorted."""
    tokens = tokens_of(text[:MOST_CHARACTERS])
    hash_of = {token: hash_text(token) for token in dict.fromkeys(tokens)}
    keys = np.fromiter((hash_of[token] for token in tokens), dtype=np.uint64, count=len(tokens))
    parts, grams = [], keys
    for size in range(1, order + 1):
        if size > 1:
            grams = grams[:-1] * _STEP + keys[size - 1 :]
        mixed = (grams ^ (grams >> np.uint64(32))) * _MIX
        parts.append(mixed >> np.uint64(64 - bits))
    return np.unique(np.concatenate(parts)).astype(np.int64)


@dataclass(frozen=True)
class _Description:
    order: int
    bits: int
    bias: float
    facts: Facts


def save_classifier(path: str | Path, models: dict[str, LanguageModel]) -> None:
    """Writes the file, whole or not at all. Raises OSError."""
    about = {
        name: asdict(_Description(model.order, model.bits, model.bias, model.facts)) for name, model in models.items()
    }
    description = json_text({"languages": about}).encode()
    content = HEADER.pack(MAGIC, VERSION, len(description)) + description
    content += b"".join(model.weights.astype("<f4").tobytes() for model in models.values())
    with replacing(path) as file:
        file.write(content + xxhash.xxh3_128_digest(content))


def load_classifier(path: str | Path) -> dict[str, LanguageModel]:
    """The models of a file by language. Raises DataError where it is missing, no such file, or damaged."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}\n  fix: {_FIX}") from error
    if not content.startswith(MAGIC) or len(content) < HEADER.size + 16:
        raise _bad(path, "is no classifier of text quality")
    _, version, size = HEADER.unpack_from(content)
    if version != VERSION:
        raise _bad(path, f"has version {version}; only {VERSION} is known")
    if xxhash.xxh3_128_digest(content[:-16]) != content[-16:]:
        raise _bad(path, "is damaged: its bytes do not have the hash that stands at its end")
    try:
        languages = read_record(dict[str, _Description], parse_json(content[HEADER.size :][:size])["languages"])
    except (ValueError, KeyError, TypeError, BadRecord) as error:
        raise _bad(path, f"has no description that can be used: {error}") from error
    return _models(path, languages, content[HEADER.size + size : -16])


def _models(path: str | Path, languages: dict[str, _Description], weights: bytes) -> dict[str, LanguageModel]:
    is_odd = any(not (1 <= one.bits <= 28 and 1 <= one.order <= 10) for one in languages.values())
    if is_odd or sum(4 << one.bits for one in languages.values()) != len(weights):
        raise _bad(path, f"has {len(weights):,} bytes of weights, which its description contradicts")
    models, start = {}, 0
    for name, one in languages.items():
        table = np.frombuffer(weights, dtype="<f4", count=1 << one.bits, offset=start)
        if not np.isfinite(table).all() or not np.isfinite(one.bias):
            raise _bad(path, f"has weights of {name} that are not finite")
        models[name] = LanguageModel(one.order, one.bias, one.facts, table)
        start += table.nbytes
    return models


def _bad(path: str | Path, rule: str) -> DataError:
    return DataError(f"{path} {rule}\n  fix: {_FIX}")


def table_of(positives: np.ndarray, negatives: np.ndarray, thresholds: Sequence[float]) -> tuple[Row, ...]:
    """Precision and recall of scores at each threshold; a precision of 1 where nothing is kept."""
    rows = []
    for threshold in thresholds:
        kept, wrong = int((positives >= threshold).sum()), int((negatives >= threshold).sum())
        precision = kept / (kept + wrong) if kept + wrong else 1.0
        rows.append(Row(threshold, precision, kept / len(positives), wrong / len(negatives)))
    return tuple(rows)
