"""What of a checkpoint's training data is compared with the texts, and what is told of the rest."""

import shutil

import pytest

from megatron_sky.evaluate.overlap import find_overlaps, unverifiable_sources
from megatron_sky.tokenizer.kinds import load_tokenizer


@pytest.fixture
def source(corpus, tmp_path):
    """The path prefix of a copy of a training source."""
    for path in (corpus / "tokens/train").glob("en_web.*"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "en_web"


def told(corpus, prefix, sha256=None):
    tokenizer = load_tokenizer(corpus / "tokenizer.model")
    domains = [("test", [], [tokenizer.encode("A text.")])]
    return find_overlaps(domains, [("web", str(prefix))], tokenizer_sha256=sha256 or tokenizer.sha256)


def test_what_can_be_compared_is_not_told(corpus, source):
    assert told(corpus, source) == ([], [])


def test_another_tokenizer_is_told(corpus, source):
    _, (line,) = told(corpus, source, sha256="0" * 64)
    assert line == "source web: its documents can't be compared: tokenized by another tokenizer"


def test_files_without_a_description_are_told_as_such(corpus, source):
    source.with_name("en_web.meta.json").unlink()
    _, (line,) = told(corpus, source)
    assert "en_web.meta.json" in line and "is not there" in line and "another tokenizer" not in line


def test_data_that_the_recipe_does_not_name_are_told():
    assert unverifiable_sources({"a", "b"}, {"a": 10, "b": 0}, None) == []
    assert unverifiable_sources({"a"}, {}, None) == []  # an order that keeps no count
    (line,) = unverifiable_sources({"a"}, {"a": 10, "old": 5, "never": 0}, None)
    assert line.startswith("source old: can't be compared: it left the mixture")
    (line,) = unverifiable_sources({"a"}, {"a": 10}, "runs/base")
    assert "runs/base" in line and "can't be looked at" in line
    (line,) = unverifiable_sources(set(), {}, None)
    assert "converted" in line
