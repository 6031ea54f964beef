import json
import random

import pytest

from megatron_sky.cli.main import app
from megatron_sky.corpus.classifier import load_classifier
from megatron_sky.corpus.train_classifier import train_classifier
from megatron_sky.errors import ConfigError, DataError

SHARED = {
    "en": ["the", "and", "of", "is", "for", "with", "this", "that", "we", "you"],
    "zh": list("的一是不了在人有我他这个们中来"),
}
OWN = {
    ("en", 1): ["evidence", "treaty", "century", "species", "theorem", "harvest"],
    ("en", 0): ["deal", "bonus", "cheap", "casino", "coupon", "winner"],
    ("zh", 1): list("史证据研究物种定理"),
    ("zh", 0): list("优惠抢购彩票赌娱"),
}


def texts(language, label, count, seed, own=0.1):
    """Words that both classes have, and some that only this one has."""
    draw = random.Random(f"{language} {label} {seed}")
    joint = "" if language == "zh" else " "
    words = [SHARED[language], OWN[language, label]]
    return [joint.join(draw.choice(words[draw.random() < own]) for _ in range(60)) for _ in range(count)]


@pytest.fixture
def files(tmp_path):
    def write(name, documents):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        return str(path)

    return write


def test_it_tells_documents_that_it_has_not_seen(files, tmp_path, capsys):
    good = files("good", [*texts("en", 1, 80, 1), *texts("zh", 1, 80, 1)])
    bad = files("bad", [*texts("en", 0, 120, 1), *texts("zh", 0, 120, 1)])
    out = tmp_path / "quality"
    app(
        ["corpus", "train-classifier", str(out), "--positive", good, "--negative", bad, "--held-out", "0.3"],
        standalone_mode=False,
    )
    shown = capsys.readouterr().out
    assert "en: trained on" in shown and "zh: trained on" in shown and "negatives kept" in shown
    models = load_classifier(out)
    for language, model in models.items():
        assert model.facts.area > 0.98 and model.facts.positives + model.facts.held_out_positives == 80
        assert all(model.score(text) > 0.5 for text in texts(language, 1, 20, 2, own=0.4))
        assert all(model.score(text) < 0.5 for text in texts(language, 0, 20, 2, own=0.4))
        at_half = next(row for row in model.facts.table if row.threshold == 0.5)
        assert at_half.precision > 0.9 and at_half.recall > 0.9 > at_half.negatives_kept


def test_classes_that_do_not_differ_are_not_told_apart(files, tmp_path):
    """What is held out is not trained on: else the area would be 1."""
    good, bad = files("good", texts("en", 1, 150, 1, own=0)), files("bad", texts("en", 0, 150, 1, own=0))
    [model] = train_classifier(tmp_path / "q", [good], [bad], languages=["en"], held_out=0.3).values()
    assert 0.3 < model.facts.area < 0.7


def test_one_class_alone_is_refused_and_named(files, tmp_path):
    good, bad = files("good", texts("en", 1, 60, 1)), files("bad", texts("zh", 0, 60, 1))
    with pytest.raises(DataError) as raised:
        train_classifier(tmp_path / "q", [good], [bad], languages=["zh", "en"], held_out=0.3)
    assert "en: 0 negatives to train on" in str(raised.value) and "zh: 0 positives to train on" in str(raised.value)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train_classifier(tmp_path / "q", [str(tmp_path / "none.jsonl")], [bad], languages=["zh"])
    assert not (tmp_path / "q").exists()
    with pytest.raises(ConfigError, match="its folder is not there"):
        train_classifier(tmp_path / "no" / "q", [good], [bad], languages=["en"])


def test_documents_of_both_classes_are_left_out_and_told(files, tmp_path, capsys):
    both = texts("en", 1, 5, 9)
    good = files("good", [*texts("en", 1, 60, 1), *both])
    bad = files("bad", [*texts("en", 0, 60, 1), *(text.upper() for text in both)])
    [model] = train_classifier(tmp_path / "q", [good], [bad], languages=["en"], held_out=0.3).values()
    assert model.facts.positives + model.facts.held_out_positives == 60
    assert "5 documents are positives and negatives, and are left out" in capsys.readouterr().err
