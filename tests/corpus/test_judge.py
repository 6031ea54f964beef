import pytest

from megatron_sky.corpus.contamination import BenchmarkIndex
from megatron_sky.corpus.judge import Decontaminate, JudgeForm, JudgeLanguage, Mask, Route, is_held_out, quality_of
from megatron_sky.corpus.recipe import CorpusRecipe, DecontaminationConfig, HeldOutConfig, LanguageConfig
from tests.corpus.test_heuristics import GOOD_EN, GOOD_ZH

RECIPE = CorpusRecipe.model_validate(
    {
        "out": "x",
        "sources": [{"name": "web", "kind": "jsonl", "paths": ["x"]}],
        "outputs": [{"name": "wiki", "hosts": ["wiki.test"]}, {"name": "web_zh", "languages": ["zh"]}],
        "held_out": {"since": "2023-11"},
    }
)


def test_languages_are_judged(tmp_path, document):
    step = JudgeLanguage(tmp_path, LanguageConfig(keep=("zh",)), True)
    zh, en = document(GOOD_ZH, language=None), document(GOOD_EN, language=None)
    assert step.judge(zh) is None and zh.metadata["language"] == "zh"
    assert step.judge(en) == "language_en"


def test_traditional_characters_are_simplified_by_choice(tmp_path, document):
    pytest.importorskip("opencc", reason="pip install 'megatron-sky[crawl]'")
    texts = ["頭髮和發展裡的問題，乾燥與乾坤，皇后在後面。" * 5, "漢字\nChinese", "裡 stays in other languages " * 9]
    for simplify, wanted in ((True, "头发和发展里的问题，干燥与乾坤，皇后在后面。" * 5), (False, texts[0])):
        step = JudgeLanguage(tmp_path, LanguageConfig(simplify=simplify), True)
        step.begin(0)
        zh, pair, en = document(texts[0]), document(texts[1], language="zh-en"), document(texts[2])
        assert step.judge(zh) is None and zh.text == wanted
        assert step.judge(pair) is None and pair.text == ("汉字\nChinese" if simplify else texts[1])
        step.judge(en)
        assert en.text == texts[2]


def test_form_gives_quality_and_what_is_held_out(tmp_path, document):
    step = JudgeForm(tmp_path, RECIPE)
    new, old = document(GOOD_EN, date="2023-11-05T00:00"), document(GOOD_EN, date="2023-10-31")
    assert step.judge(new) is None and step.judge(old) is None and step.judge(document("short")) == "too_short"
    assert new.metadata["held_out"] and "held_out" not in old.metadata and old.metadata["quality"] > 100
    assert quality_of(GOOD_EN) > quality_of(GOOD_EN.replace(" ", " # ")) and quality_of("") == 0


def test_copies_are_held_out_together():
    config = HeldOutConfig(share=0.3)
    texts = [f"document number {i}" for i in range(500)]
    chosen = [is_held_out(text, "", config) for text in texts]
    assert 0.2 < sum(chosen) / 500 < 0.4
    assert chosen == [is_held_out(text.upper() + "!", "", config) for text in texts]


def test_masks_benchmarks_and_routes(tmp_path, document):
    text = document("call 415-555-2671")
    assert Mask(tmp_path, RECIPE).judge(text) is None and text.text == "call <phone>"
    BenchmarkIndex.build(DecontaminationConfig()).save(tmp_path / "index.npz")
    step = Decontaminate(tmp_path, tmp_path / "index.npz", True)
    step.begin(0)
    assert step.judge(text) is None
    route = Route(tmp_path, RECIPE.outputs, True)
    wiki = document(GOOD_ZH, url="https://zh.wiki.test/a", held_out=True)
    assert route.judge(wiki) is None and wiki.metadata["output"] == "validation/wiki"
    zh = document(GOOD_ZH, language="zh")
    assert route.judge(zh) is None and zh.metadata["output"] == "text/web_zh" and "quality" not in zh.metadata
    assert route.judge(document(GOOD_EN)) == "no_output"


def test_a_pair_is_judged_as_one(tmp_path, document):
    step = JudgeLanguage(tmp_path, LanguageConfig(keep=("zh",), drop_paragraphs=True), True)
    form = JudgeForm(tmp_path, RECIPE)
    good = document("好的吗\nIs it good?", language="zh-en", pair=["好的吗", "Is it good?"])
    bad = document("好的吗\n好的吗", language="zh-en", pair=["好的吗", "好的吗"])
    assert step.judge(good) is None and good.text == "好的吗\nIs it good?"
    assert form.judge(good) is None and "pair" not in good.metadata
    assert form.judge(bad) == "pair_script"
