"""Questions and answers in English and Chinese about the quickstart's corpus: python make_data.py FOLDER.

Four kinds, each asked in several ways: where someone works, a word in the other language, how a thing is counted in
Chinese, and which of three things comes first or last. Every sixth question is held out: its way of asking and what it
asks about are known, but not the two together. The pairs have a wrong answer of the same kind beside the right one.

    FOLDER/{train,held_out}.jsonl                 instruction, output
           {train,held_out}_pairs.jsonl           prompt, chosen, rejected
"""

import itertools
import json
import random
import sys
from pathlib import Path

PLACES = {
    "garden": "gardener beekeeper neighbour",
    "harbour": "sailor pilot fisher",
    "kitchen": "cook baker guest",
    "workshop": "carpenter smith apprentice",
    "railway": "conductor porter traveller",
    "library": "reader keeper student",
}
PLACES_ZH = {
    "茶园": "茶农 客人 徒弟",
    "渔港": "渔民 船长 孩子",
    "书店": "店主 学生 老人",
    "果园": "园丁 邻居 工人",
    "车站": "旅客 司机 站长",
    "作坊": "木匠 铁匠 学徒",
}
GOODS = {"pens": "铅笔", "apples": "苹果", "stamps": "邮票", "marbles": "玻璃球", "tickets": "车票", "candles": "蜡烛"}
UNITS = {"铅笔": "支", "苹果": "个", "邮票": "张", "玻璃球": "颗", "车票": "张", "蜡烛": "根"}

WHERE = (
    "Where does the {} work?",
    "Where is the {}?",
    "In which place do we find the {}?",
    "Tell me where the {} is.",
    "The {} works where?",
    "Find the {}.",
)
WHERE_ZH = (
    "{}在哪里？",
    "哪里有{}？",
    "{}在什么地方？",
    "请问{}在哪里工作？",
    "我们到哪里找{}？",
    "{}工作的地方是哪里？",
)
WORD = ("What is {} in Chinese?", "Write {} in Chinese.", "The Chinese word for {}?", "How do you say {} in Chinese?")
WORD_ZH = ("{}的英文是什么？", "用英文写{}。", "{}用英文怎么说？", "英文里{}是什么？")
COUNT_ZH = ("{}怎么数？", "一份{}怎么说？", "{}用什么量词？", "给{}加上量词。", "请数{}。", "数一数{}。")
ORDER = {
    0: ("There are {}, {} and {}. Which come first?", "{}, {}, {}: name the first."),
    2: ("There are {}, {} and {}. Which come last?", "{}, {}, {}: name the last."),
}
ORDER_ZH = {0: ("有{}、{}和{}。第一是什么？",), 2: ("有{}、{}和{}。最后是什么？",)}

Question = tuple[str, str, str]  # what is asked, the right answer, a wrong one


def questions(rng: random.Random) -> list[list[Question]]:
    """By kind."""
    return [
        _of_people(rng, WHERE, PLACES, "In the {}."),
        _of_people(rng, WHERE_ZH, PLACES_ZH, "在{}。"),
        _of_words(rng, WORD, GOODS) + _of_words(rng, WORD_ZH, {zh: en for en, zh in GOODS.items()}),
        _of_words(rng, COUNT_ZH, {goods: f"一{unit}{goods}" for goods, unit in UNITS.items()}),
        _of_order(rng, ORDER, list(GOODS)) + _of_order(rng, ORDER_ZH, list(UNITS)),
    ]


def _of_people(rng: random.Random, ways, places: dict[str, str], answer: str) -> list[Question]:
    known = [(person, place) for place, people in places.items() for person in people.split()]
    return [
        (
            way.format(person),
            answer.format(place),
            answer.format(rng.choice([other for other in places if other != place])),
        )
        for way, (person, place) in itertools.product(ways, known)
    ]


def _of_words(rng: random.Random, ways, words: dict[str, str]) -> list[Question]:
    return [
        (way.format(word), answer, rng.choice([other for other in words.values() if other != answer]))
        for way, (word, answer) in itertools.product(ways, words.items())
    ]


def _of_order(rng: random.Random, ways: dict[int, tuple[str, ...]], goods: list[str]) -> list[Question]:
    return [
        (text.format(*three), three[place], three[2 - place])
        for three in itertools.permutations(goods, 3)
        for place, texts in ways.items()
        for text in texts
    ]


def main() -> None:
    folder, rng = Path(sys.argv[1]), random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    split: dict[str, list[Question]] = {"train": [], "held_out": []}
    for kind in questions(rng):
        rng.shuffle(kind)
        count = len(kind) // 6
        split["held_out"] += kind[:count]
        split["train"] += kind[count:]
    for name, asked in split.items():
        rng.shuffle(asked)
        _write(folder / f"{name}.jsonl", [{"instruction": text, "output": right} for text, right, _ in asked])
        pairs = [{"prompt": text, "chosen": right, "rejected": wrong} for text, right, wrong in asked]
        _write(folder / f"{name}_pairs.jsonl", pairs)


def _write(path: Path, records: list[dict]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
