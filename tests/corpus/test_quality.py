import math

import numpy as np
import pytest

from megatron_sky.corpus.classifier import Facts, LanguageModel, buckets_of, save_classifier
from megatron_sky.corpus.ledger import read_stage
from megatron_sky.corpus.quality import JudgeQuality, Perplexity
from megatron_sky.corpus.recipe import PerplexityConfig, QualityConfig

ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-0.5\t</s>
-0.5\tthe\t-0.3
-0.5\t汉\t-0.3

\\2-grams:
-0.1\t<s> the
-0.1\tthe </s>

\\end\\
"""


@pytest.fixture
def classifier(tmp_path):
    weights = np.zeros(1 << 12, dtype="<f4")
    weights[buckets_of("good", 1, 12)], weights[buckets_of("bad", 1, 12)] = 4, -4
    save_classifier(tmp_path / "q", {"en": LanguageModel(1, 0.0, Facts(), weights)})
    return str(tmp_path / "q")


def test_scores_below_the_languages_threshold_are_dropped(classifier, tmp_path, document):
    step = JudgeQuality(tmp_path, QualityConfig(classifier=classifier, min_score={"en": 0.6}), True)
    good, bad = document("Good words"), document("bad words")
    others = [document("坏话", language="zh"), document("bad", language="code")]
    kept = list(step.run([good, bad, *others]))
    assert kept == [good, *others] and all("score" not in other.metadata for other in others)
    assert good.metadata["score"] > 0.9 and good.metadata["quality"] == pytest.approx(good.metadata["score"], abs=1e-4)
    account = read_stage(tmp_path, "quality")["web"]
    assert account.dropped["low_score"].documents == 1
    assert account.histograms == {"score_en": {"0.9": 1, "0.0": 1}}


def test_perplexity_is_that_of_the_model(tmp_path, document):
    pytest.importorskip("kenlm", reason="pip install 'megatron-sky[perplexity]'")
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA, encoding="utf-8")
    perplexity = Perplexity(PerplexityConfig(model=str(path), max=100))
    assert perplexity("The\n\nthe") == pytest.approx(10**0.1)  # two lines of <s> the </s>: 0.1 a token
    assert perplexity("汉") == pytest.approx(10 ** ((0.3 + 0.5 + 0.3 + 0.5) / 2))
    assert perplexity(" \n") == math.inf
    config = QualityConfig(perplexity={"en": PerplexityConfig(model=str(path), max=5, min=1.5)})
    step = JudgeQuality(tmp_path, config, True)
    step.begin(0)
    rules = [step.judge(document(text)) for text in ("the", "the 汉", "what words")]
    assert rules == ["low_perplexity", None, "high_perplexity"]
    assert step.judge(document("the", language="zh")) is None
