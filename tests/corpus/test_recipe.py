from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.corpus.recipe import load_corpus_recipe
from megatron_sky.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = """
out: built
sources:
  - {name: web, kind: warc, paths: [crawl/*.warc.gz]}
outputs:
  - {name: web_zh, languages: [zh], repeat: 2}
"""


@pytest.fixture
def load(tmp_path):
    def loaded(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_corpus_recipe([path, *overrides])

    return loaded


def test_a_recipe_is_read_with_overrides(load):
    recipe = load(GOOD, "heuristics.zh.min_length=50", "read.unit_bytes=1M", "outputs.web_zh.repeat=3")
    assert recipe.heuristics.zh.min_length == 50 and recipe.heuristics.en.min_length == 200
    assert recipe.read.unit_bytes == 1_000_000 and recipe.outputs[0].repeat == 3


def test_all_problems_are_told_at_once_with_their_place(load):
    text = GOOD.replace("kind: warc", "kind: wark").replace("repeat: 2", "repeat: 6") + "heuristic: {}\n"
    with pytest.raises(ConfigError) as raised:
        load(text)
    message = str(raised.value)
    assert len(raised.value.problems) == 3
    assert "sources.0.kind" in message and "recipe.yaml:4" in message and "less than or equal to 5" in message
    assert "did you mean heuristics?" in message


def test_the_full_recipe_is_valid_and_loads_back_equal(monkeypatch, tmp_path):
    for name in ("CRAWL", "WIKI", "PAIRS", "CODE", "BENCHMARKS"):
        monkeypatch.setenv(name, "/data")
    recipe = load_corpus_recipe([EXAMPLES / "skypile" / "corpus.yaml"])
    (tmp_path / "again.yaml").write_text(dump_config(recipe), encoding="utf-8")
    assert load_corpus_recipe([tmp_path / "again.yaml"]) == recipe
    assert all(output.repeat <= 5 for output in recipe.outputs) and recipe.recurrence.partitions == 512


def test_outputs_name_known_sources(load):
    with pytest.raises(ConfigError, match=r"outputs\.web_zh\.sources: wiki is no source"):
        load(GOOD.replace("languages: [zh]", "sources: [wiki]"))


def test_a_classifier_and_its_thresholds_come_together(load):
    with pytest.raises(ConfigError, match=r"classifier and min_score .* are given together"):
        load(GOOD, "quality.classifier=q")
    recipe = load(GOOD, "quality.classifier=q", "quality.min_score.zh=0.4")
    assert recipe.quality.min_score == {"zh": 0.4}


def test_a_template_holds_both_sides(load):
    with pytest.raises(ConfigError, match=r"must hold \{zh\} and \{en\}, each once"):
        load(GOOD, "sources.web.templates=['{zh} only']")
