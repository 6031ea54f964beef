"""`corpus train-classifier`: logistic regression on the user's good and bad documents, proved on held-out ones.

scikit-learn fits it; the file that comes out needs no scikit-learn. Which documents are held out follows from the hash
of their content, so that copies are on one side.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_sky.corpus.classifier import (
    BITS,
    ORDERS,
    Facts,
    LanguageModel,
    buckets_of,
    save_classifier,
    table_of,
)
from megatron_sky.corpus.grams import content_key, share_of
from megatron_sky.corpus.language import language_of_document
from megatron_sky.data.ingest.texts import sample_texts
from megatron_sky.errors import ConfigError, DataError, MissingDependency, Problem
from megatron_sky.log import say

LEAST_DOCUMENTS = 20
"""Of each class and language: to train on, and a quarter of it held out."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_STRENGTH = 10.0  # of the fit, against the penalty on weights: rows have length 1
_CLASSES = ("negatives", "positives")
Documents = dict[int, str]  # by the key of the content


def train_classifier(
    out: str | Path,
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    languages: Sequence[str],
    key: str = "text",
    held_out: float = 0.1,
    max_bytes: int = 200_000_000,
) -> dict[str, LanguageModel]:
    """Trains a classifier for each language and writes the file; the models.

    Args:
        key: field of the text, of JSONL and Parquet.
        held_out: share of documents that are not trained on.
        max_bytes: characters taken of each class, evenly over its files.

    Raises:
        ConfigError: the folder of `out` is not there.
        DataError: files that can't be read, or a class with too few documents of a language.
        MissingDependency: scikit-learn is not installed.
    """
    require_sklearn()
    if not Path(out).absolute().parent.is_dir():
        raise ConfigError(Problem("FILE", "its folder is not there", "make it, or give another path", str(out)))
    classes = [_read(paths, key, languages, max_bytes) for paths in (negatives, positives)]
    for language in languages:
        both = classes[0][language].keys() & classes[1][language].keys()
        if both:
            say(f"{language}: {len(both):,} documents are positives and negatives, and are left out")
        for documents in classes:
            for one in both:
                del documents[language][one]
    parts = {language: [_split(documents[language], held_out) for documents in classes] for language in languages}
    _check(parts)
    models = {language: _fit(language, *parts[language]) for language in languages}
    save_classifier(out, models)
    return models


def require_sklearn() -> None:
    import importlib.util

    if importlib.util.find_spec("sklearn") is None:
        raise MissingDependency("scikit-learn", "training a classifier", "pip install 'megatron-sky[crawl]'")


def _read(paths: Sequence[str], key: str, languages: Sequence[str], max_bytes: int) -> dict[str, Documents]:
    documents: dict[str, Documents] = {language: {} for language in languages}
    for text in sample_texts(paths, key=key, max_bytes=max_bytes):
        language = language_of_document(text)
        if language in documents:
            documents[language].setdefault(content_key(text), text)
    return documents


def _split(documents: Documents, held_out: float) -> tuple[list[str], list[str]]:
    """Those to train on, and those held out, in the order of their hashes."""
    ordered = sorted(documents)
    return (
        [documents[one] for one in ordered if share_of(one) >= held_out],
        [documents[one] for one in ordered if share_of(one) < held_out],
    )


def _check(parts: dict[str, list[tuple[list[str], list[str]]]]) -> None:
    problems = []
    for language, classes in parts.items():
        for name, (train, test) in zip(_CLASSES, classes, strict=True):
            if len(train) < LEAST_DOCUMENTS or len(test) < LEAST_DOCUMENTS // 4:
                problems.append(f"{language}: {len(train):,} {name} to train on and {len(test):,} held out")
    if problems:
        least = f"a class needs {LEAST_DOCUMENTS} different documents to train on and {LEAST_DOCUMENTS // 4} held out"
        fix = "give more of them, leave the language out with --language, or name the text's field with --key"
        found = "\n  ".join(problems)
        raise DataError(f"too few documents for a classifier:\n  {found}\n  {least}\n  fix: {fix}")


def _fit(
    language: str, negatives: tuple[list[str], list[str]], positives: tuple[list[str], list[str]]
) -> LanguageModel:
    from sklearn.linear_model import LogisticRegression

    texts = negatives[0] + positives[0]
    labels = np.array([0] * len(negatives[0]) + [1] * len(positives[0]))
    fit = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=500)
    rows, columns = _rows(texts, ORDERS[language])
    fit.fit(rows, labels)
    weights, bias = np.zeros(1 << BITS, dtype="<f4"), float(fit.intercept_[0])
    weights[columns] = fit.coef_[0]
    model = LanguageModel(ORDERS[language], bias, Facts(), weights)
    good, bad = (np.array([model.score(text) for text in part[1]]) for part in (positives, negatives))
    counts = (len(positives[0]), len(negatives[0]), len(good), len(bad))
    facts = Facts(*counts, _area(good, bad), table_of(good, bad, THRESHOLDS))
    return replace(model, facts=facts)


def _rows(texts: Sequence[str], order: int):
    """One row of length 1 for each text, sparse, with a column for each place that occurs; and those places."""
    from scipy.sparse import csr_matrix

    places = [buckets_of(text, order, BITS) for text in texts]
    sizes = np.array([len(row) for row in places])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    columns, numbers = np.unique(np.concatenate(places), return_inverse=True)
    return csr_matrix((values, numbers, ends), shape=(len(texts), len(columns))), columns


def _area(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Under the ROC curve; of equal scores, half."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, "left") + np.searchsorted(ordered, positives, "right")
    return float(below.mean() / 2 / len(negatives))


def describe(models: dict[str, LanguageModel]) -> str:
    """Documents, and precision and recall by threshold, in lines."""
    lines = []
    for language, model in models.items():
        facts = model.facts
        lines += [
            f"{language}: trained on {facts.positives:,} positives and {facts.negatives:,} negatives",
            f"  of {facts.held_out_positives:,} and {facts.held_out_negatives:,} held out (area under ROC "
            f"{facts.area:.4f}):",
            "  threshold  precision  recall  negatives kept",
        ]
        lines += [
            f"  {row.threshold:9.1f}{row.precision:11.3f}{row.recall:8.3f}{row.negatives_kept:16.3f}"
            for row in facts.table
        ]
    return "\n".join(lines)
