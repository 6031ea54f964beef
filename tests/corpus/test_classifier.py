import itertools

import numpy as np
import pytest

from megatron_sky.corpus.classifier import (
    HEADER,
    Facts,
    LanguageModel,
    Row,
    buckets_of,
    load_classifier,
    save_classifier,
    table_of,
)
from megatron_sky.errors import DataError


def model(bits=6, order=2):
    weights = np.linspace(-1, 1, 1 << bits).astype("<f4")
    return LanguageModel(order, 0.25, Facts(9, 8, 3, 2, 0.9, (Row(0.5, 1.0, 0.75, 0.0),)), weights)


def test_places_are_those_of_the_written_format():
    """By docs/formats.md, in plain integers."""
    import xxhash

    mask = (1 << 64) - 1
    tokens = [xxhash.xxh3_64_intdigest(word.encode()) for word in ("one", "汉", "two")]
    grams = [*tokens, *((a * 0x9E3779B97F4A7C15 + b) & mask for a, b in itertools.pairwise(tokens))]
    places = {((gram ^ gram >> 32) * 0xBF58476D1CE4E5B9 & mask) >> (64 - 20) for gram in grams}
    assert buckets_of("One 汉, TWO", 2, 20).tolist() == sorted(places) and len(places) == 5
    assert buckets_of("", 3, 20).size == 0 and buckets_of("one", 3, 20).size == 1


def test_a_file_gives_the_same_scores_again(tmp_path):
    save_classifier(tmp_path / "q", {"zh": model(order=3), "en": model(bits=5)})
    again = load_classifier(tmp_path / "q")
    assert list(again) == ["zh", "en"] and again["en"].bits == 5 and again["zh"].facts == model().facts
    for text in ("some words of a text", "一些汉字", ""):
        assert again["zh"].score(text) == model(order=3).score(text)
        assert 0 < again["en"].score(text) < 1
    assert again["en"].score("") == pytest.approx(1 / (1 + np.exp(-0.25)))


def test_other_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "q"
    with pytest.raises(DataError, match="q can't be read: No such file"):
        load_classifier(path)
    save_classifier(path, {"en": model()})
    good = path.read_bytes()
    for content, rule in (
        (b"x" * 99, "is no classifier of text quality"),
        (good[:20], "is no classifier of text quality"),
        (good[:8] + b"\2" + good[9:], "has version 2; only 1 is known"),
        (good[:-30] + b"\0" + good[-29:], "is damaged"),
        (good[:-1], "is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rule):
            load_classifier(path)


@pytest.mark.parametrize(
    "old, new, rule",
    [
        (b'"bits": 6', b'"bits": 7', "bytes of weights, which its description contradicts"),
        (b'"order": 2', b'"order": 0', "bytes of weights, which its description contradicts"),
        (b'"bias": 0.25', b'"bias": "nan"', "no description that can be used|not finite"),
        (b'"languages"', b'"langauges"', "no description that can be used"),
    ],
)
def test_a_description_that_was_changed_is_refused(tmp_path, old, new, rule):
    import xxhash

    path = tmp_path / "q"
    save_classifier(path, {"en": model()})
    content = path.read_bytes()[:-16]
    assert old in content
    content = content.replace(old, new)
    size = content.index(b"}}}}") + 4 - HEADER.size
    content = content[:16] + size.to_bytes(8, "little") + content[HEADER.size :]
    path.write_bytes(content + xxhash.xxh3_128_digest(content))
    with pytest.raises(DataError, match=rule):
        load_classifier(path)


def test_precision_and_recall():
    rows = table_of(np.array([0.9, 0.6, 0.2]), np.array([0.7, 0.1]), (0.5, 0.95))
    assert rows == (Row(0.5, 2 / 3, 2 / 3, 0.5), Row(0.95, 1.0, 0.0, 0.0))
