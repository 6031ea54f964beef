import json
import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from megatron_sky.corpus.heuristics import (
    _ENGLISH_ADS,
    _may_advertise,
    judge_code,
    judge_pair,
    judge_text,
    repeated_characters,
)
from megatron_sky.corpus.recipe import CodeThresholds, HeuristicsConfig, PairThresholds

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CONFIG = HeuristicsConfig()
GOOD_ZH = (
    "桥梁的历史可以追到一千多年以前，当时的工匠用石头和木材把它建在河上。\n后来河水改了方向，人们便把它当作集市，"
    "附近的村民每到初一都会来这里买卖粮食与布匹。\n如今修复的工作已经开始，研究者希望在两年内完成，并且保留原来的样子。"
    "\n参观的人不用买票，但是要在门口登记姓名，这样管理的人才知道还有谁没有离开。"
)
GOOD_EN = (
    "The bridge was built a thousand years ago by people who knew how to work with stone and wood.\n"
    "Later the river took another way, and the villagers used the old place as a market for grain and cloth.\n"
    "Repairs have begun now, and those who lead them hope to end within two years without changing how it looks."
)


def test_good_text_stays():
    assert judge_text(GOOD_ZH, "zh", CONFIG) is None and judge_text(GOOD_EN, "en", CONFIG) is None


@pytest.mark.parametrize(
    ("text", "language", "rule"),
    [
        ("太短。", "zh", "too_short"),
        (GOOD_ZH + "★☆◆◇→※" * 20, "zh", "symbols"),
        (GOOD_EN + " 31415926535" * 30, "en", "digits"),
        ("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结" * 3, "zh", "stop_words"),
        (
            "lorem ipsum dolor amet consectetur adipiscing elit sed eiusmod tempor incididunt labore " * 3,
            "en",
            "stop_words",
        ),
        ("a b c d e f g h i j k the of to " * 20, "en", "word_length"),
        ("\n".join(f"- the item of number {word} in our list is good" for word in "abcdefghij"), "en", "bullets"),
        (GOOD_EN.replace(".\n", "...\n") + "..", "en", "ellipses"),
        ("\n".join([GOOD_EN] * 3), "en", "repeated_lines"),
        ("\n".join(f"the menu and dishes {word * 6}" for word in "abcdefghijklmn"), "en", "list"),
        (GOOD_ZH + "锟斤拷烫烫烫" * 3, "zh", "mojibake"),
        (GOOD_ZH + "加微信立即购买全国包邮", "zh", "advertisements"),
        (GOOD_EN + " Click here! Buy now! Order now!", "en", "advertisements"),
        (GOOD_ZH.replace("\n", "") + GOOD_ZH.replace("\n", ""), "zh", "repeated_grams"),
    ],
)
def test_each_rule_has_its_name(text, language, rule):
    assert judge_text(text, language, CONFIG) == rule


@pytest.mark.parametrize(
    ("text", "path", "rule"),
    [
        ("def f(x):\n    return x + 1\n" * 5, "a.py", None),
        ("x" * 2000, "a.js", "longest_line"),
        ("x = 1;" * 30 + "\n", "a.js", "mean_line"),
        ("{}();,.\n" * 9, "a.js", "alphanumeric"),
    ],
)
def test_code(text, path, rule):
    assert judge_code(text, path, CodeThresholds()) == rule


def test_a_share_of_markup_is_kept():
    kept = [judge_code(f'{{"number": {i}}}', "a.json", CodeThresholds()) for i in range(400)]
    assert set(kept) == {None, "share_of_json"} and 5 < kept.count(None) < 40


def test_real_news_stays():
    if not (DATA / "zh_general.jsonl").exists():
        pytest.skip("the real texts are not here")
    with open(DATA / "zh_general.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(60), file, strict=False)]
    assert [judge_text(text, "zh", CONFIG) for text in texts].count(None) >= 0.95 * len(texts)


@pytest.mark.parametrize(
    "zh, en, rule",
    [
        ("今天的天气非常好。", "The weather is very good today.", None),
        ("好的", "OK", None),
        ("好", "OK", "pair_too_short"),
        ("The weather is good.", "The weather is good.", "pair_script"),
        ("今天的天气非常好。", "今天的天气非常好。", "pair_script"),
        ("今天的天气非常好。", "Today", "pair_ratio"),
        ("今天的天气非常好。", "The weather is good. " * 9, "pair_ratio"),
    ],
)
def test_pairs_that_are_no_translations(zh, en, rule):
    assert judge_pair(zh, en, PairThresholds()) == rule


def test_repeated_characters_are_those_of_datatrove():
    gopher = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    draw = random.Random(2)
    for vocabulary, size in ((3, 2), (4, 5), (50, 3), (5000, 10)):
        tokens = ["a" * draw.randint(1, 3) + str(draw.randrange(vocabulary)) for _ in range(400)]
        assert repeated_characters(tokens, size) == gopher.find_all_duplicate(tokens, size)
    assert repeated_characters([], 5) == repeated_characters(["a"], 5) == 0


@pytest.mark.parametrize("phrase", ["Click HERE", "cheap watches online", "Sign up today", "unſubſcribe"])
def test_the_short_cut_to_advertisements_loses_none(phrase):
    assert _may_advertise(f"Some text, {phrase}.") and _ENGLISH_ADS.search(f"Some text, {phrase}.")
    assert not _may_advertise("The river flows by the old house in the valley.")
