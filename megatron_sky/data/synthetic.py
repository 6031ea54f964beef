"""A synthetic bilingual corpus: five kinds of text by small grammars of our own, for trials that need no download.

Each domain has its own words and habits, so that losses per domain differ and move apart: web pages in English and in
Chinese (a topic chooses the words of a page), program code, papers with sections and citations, and exercises whose
arithmetic is worked out and right. A model of one or two million parameters learns much of it within half a million
tokens. The same seed gives the same bytes on every machine; no document occurs twice in any of the splits.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from megatron_sky.errors import DataError
from megatron_sky.files import replacing

SPLITS = ("train", "validation", "test")

_TOPICS_EN = {
    "garden": (
        "gardener beekeeper neighbour",
        "seed hedge pond orchard bean rose",
        "plants waters trims waits for",
        "damp green early",
    ),
    "harbour": (
        "sailor pilot fisher",
        "boat rope lantern pier net crane",
        "paints mends loads watches",
        "salty grey northern",
    ),
    "kitchen": (
        "cook baker guest",
        "soup oven loaf kettle plum spoon",
        "stirs tastes warms serves",
        "sweet copper warm",
    ),
    "workshop": (
        "carpenter smith apprentice",
        "bench saw hinge plank chisel wheel",
        "cuts measures polishes fixes",
        "oak heavy precise",
    ),
    "railway": (
        "conductor porter traveller",
        "train ticket bridge signal platform timetable",
        "checks misses follows repairs",
        "late long distant",
    ),
    "library": (
        "reader keeper student",
        "book shelf letter map catalogue desk",
        "reads copies sorts borrows",
        "old silent rare",
    ),
}
_TIMES_EN = (
    "in the morning",
    "before noon",
    "on market day",
    "after the rain",
    "late in the year",
    "every second week",
)
_PLACES_EN = (
    "near the old mill",
    "by the river",
    "behind the town hall",
    "at the end of the lane",
    "close to the square",
)
_LINKS_EN = ("Then", "After that", "For this reason", "Meanwhile", "In the end", "Even so")

_TOPICS_ZH = {
    "茶园": ("茶农 客人 徒弟", "茶叶 竹篮 山泉 茶壶 香气", "采摘 晾晒 收好 品尝", "新鲜 清香 温热"),
    "渔港": ("渔民 船长 孩子", "渔船 渔网 灯塔 码头 海风", "修补 看守 拉起 等待", "湿冷 明亮 古老"),
    "书店": ("店主 学生 老人", "小说 地图 书架 信件 词典", "翻看 整理 买下 借走", "安静 厚重 少见"),
    "果园": ("园丁 邻居 工人", "苹果 梨树 水渠 篱笆 种子", "浇灌 修剪 种下 照看", "甜美 青绿 饱满"),
    "车站": ("旅客 司机 站长", "列车 车票 站台 行李 时刻表", "检查 错过 寻找 等候", "漫长 拥挤 准时"),
    "作坊": ("木匠 铁匠 学徒", "木板 锯子 轮子 长凳 工具", "打磨 测量 修理 做好", "结实 沉重 精细"),
}
_TIMES_ZH = ("清晨", "中午以前", "赶集那天", "雨后", "年底", "每隔两周")
_PLACES_ZH = ("在河边", "在老桥旁", "在村子东头", "在广场附近", "在山脚下")
_LINKS_ZH = ("后来", "因此", "与此同时", "不过", "最后", "接着")

_VERBS_CODE = ("count", "merge", "filter", "scale", "group", "find")
_NOUNS_CODE = ("rows", "items", "values", "nodes", "pairs", "words")
_FIELDS_CODE = ("size", "score", "weight", "depth", "cost")

_SUBJECTS = ("sparse graphs", "slow diffusion", "layered media", "noisy channels", "random walks", "elastic shells")
_METHODS = (
    "a spectral bound",
    "a two-step estimate",
    "an iterative scheme",
    "a coupling argument",
    "a variational form",
)
_RESULTS = (
    "converges at a linear rate",
    "is stable under small noise",
    "improves on the known bound",
    "holds for all n",
)

_GOODS_EN = ("pens", "apples", "stamps", "marbles", "tickets", "candles")
_GOODS_ZH = ("铅笔", "苹果", "邮票", "玻璃球", "车票", "蜡烛")
_UNITS_ZH = {"铅笔": "支", "苹果": "个", "邮票": "张", "玻璃球": "颗", "车票": "张", "蜡烛": "根"}
_NAMES_EN = ("Ada", "Bruno", "Clara", "Dario", "Edda", "Felix")
_NAMES_ZH = ("小林", "小周", "小陈", "小何", "小吴", "小郑")


def _en_web(rng: random.Random) -> str:
    topic = rng.choice(sorted(_TOPICS_EN))
    people, things, actions, looks = _TOPICS_EN[topic]
    actions = actions.replace("waits for", "waits_for")
    lines = [f"Notes from the {topic}, number {rng.randint(1, 99)}"]
    for _ in range(rng.randint(2, 4)):
        sentences = []
        for position in range(rng.randint(3, 6)):
            person, thing, action = (rng.choice(words.split()) for words in (people, things, actions))
            core = f"the {person} {action.replace('_', ' ')} the {rng.choice(looks.split())} {thing}"
            if rng.random() < 0.5:
                core += " " + rng.choice(_PLACES_EN)
            if rng.random() < 0.4:
                core += " " + rng.choice(_TIMES_EN)
            start = f"{rng.choice(_LINKS_EN)}, " if position and rng.random() < 0.35 else ""
            sentence = start + core
            sentences.append(sentence[0].upper() + sentence[1:] + ".")
        lines.append(" ".join(sentences))
    return "\n".join(lines)


def _zh_web(rng: random.Random) -> str:
    topic = rng.choice(sorted(_TOPICS_ZH))
    people, things, actions, looks = _TOPICS_ZH[topic]
    lines = [f"{topic}见闻（第{rng.randint(1, 99)}篇）"]
    for _ in range(rng.randint(2, 4)):
        sentences = []
        for position in range(rng.randint(3, 6)):
            person, thing, action = (rng.choice(words.split()) for words in (people, things, actions))
            when = rng.choice(_TIMES_ZH) + "，" if rng.random() < 0.4 else ""
            where = rng.choice(_PLACES_ZH) if rng.random() < 0.5 else ""
            start = rng.choice(_LINKS_ZH) + "，" if position and rng.random() < 0.35 else ""
            sentences.append(f"{start}{when}{person}{where}{action}{rng.choice(looks.split())}的{thing}。")
        lines.append("".join(sentences))
    return "\n".join(lines)


def _code(rng: random.Random) -> str:
    functions = []
    for _ in range(rng.randint(2, 4)):
        verb, noun, key = rng.choice(_VERBS_CODE), rng.choice(_NOUNS_CODE), rng.choice(_FIELDS_CODE)
        item, limit = noun[:-1], rng.randint(1, 64)
        lines = [
            f"def {verb}_{noun}({noun}, limit={limit}):",
            f'    """{verb.capitalize()} the {noun} by their {key}."""',
            "    result = []",
            f"    for {item} in {noun}:",
        ]
        if rng.random() < 0.5:
            lines += [f"        if {item}.{key} > limit:", f"            result.append({item}.{key})"]
        else:
            lines += [f"        total = {item}.{key} + limit", "        result.append(total)"]
        functions.append("\n".join([*lines, "    return result"]))
    return "\n\n\n".join(functions) + "\n"


def _papers(rng: random.Random) -> str:
    subject, method, result = rng.choice(_SUBJECTS), rng.choice(_METHODS), rng.choice(_RESULTS)
    cite = sorted(rng.sample(range(1, 40), 3))
    number = rng.randint(1, 9)
    return "\n".join(
        (
            f"On {subject}",
            f"Abstract. We study {subject} and give {method}. We show that the estimate {result}.",
            f"1. Introduction. Earlier work [{cite[0]}, {cite[1]}] treats {rng.choice(_SUBJECTS)} "
            f"by {rng.choice(_METHODS)}. In contrast to [{cite[2]}], our proof needs no compactness.",
            f"2. Main result. Theorem {number}. Let n > {rng.randint(2, 20)} and let f be smooth. "
            f"Then {method} for {subject} {result}.",
            f"Proof. By Lemma {rng.randint(1, 9)} and the bound of [{rng.choice(cite)}], the claim follows. "
            f"See equation ({number}.{rng.randint(1, 9)}) for the constant.",
            f"3. Conclusion. The method extends to {rng.choice(_SUBJECTS)}; we leave this to later work.",
        )
    )


def _stem(rng: random.Random) -> str:
    return "\n\n".join(rng.choice((_exercise_en, _exercise_zh))(rng) for _ in range(rng.randint(3, 5)))


def _exercise_en(rng: random.Random) -> str:
    name, goods = rng.choice(_NAMES_EN), rng.choice(_GOODS_EN)
    boxes, each, extra = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 20)
    if rng.random() < 0.5:
        return (
            f"Question: {name} has {boxes} boxes with {each} {goods} each and finds {extra} more. How many {goods} are "
            f"there?\nAnswer: {boxes} * {each} = {boxes * each}. {boxes * each} + {extra} = {boxes * each + extra}. "
            f"There are {boxes * each + extra} {goods}."
        )
    total = boxes * each
    return (
        f"Question: {name} shares {total} {goods} among {boxes} friends. How many does each get?\n"
        f"Answer: {total} / {boxes} = {each}. Each gets {each} {goods}."
    )


def _exercise_zh(rng: random.Random) -> str:
    name, goods = rng.choice(_NAMES_ZH), rng.choice(_GOODS_ZH)
    unit = _UNITS_ZH[goods]
    boxes, each, extra = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 20)
    total = boxes * each
    if rng.random() < 0.5:
        return (
            f"问题：{name}有{boxes}盒{goods}，每盒{each}{unit}，又得到{extra}{unit}。一共有多少{unit}{goods}？\n"
            f"解答：{boxes} * {each} = {total}，{total} + {extra} = {total + extra}。"
            f"一共有{total + extra}{unit}{goods}。"
        )
    return (
        f"问题：{name}把{total}{unit}{goods}平均分给{boxes}个朋友，每人得到多少{unit}？\n"
        f"解答：{total} / {boxes} = {each}。每人得到{each}{unit}{goods}。"
    )


# Domain -> (its generator, its share of the training bytes).
_DOMAINS: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "en_web": (_en_web, 0.35),
    "zh_web": (_zh_web, 0.30),
    "code": (_code, 0.10),
    "papers": (_papers, 0.10),
    "stem": (_stem, 0.15),
}
DOMAINS = tuple(_DOMAINS)


def write_corpus(
    folder: str | Path, *, seed: int = 1234, train_bytes: int = 3_000_000, heldout_bytes: int = 40_000
) -> dict[str, dict[str, Path]]:
    """Write `<folder>/<split>/<domain>.jsonl` for every split and domain, one `{"text": ...}` a line.

    Args:
        seed: the same seed and sizes give the same bytes.
        train_bytes: UTF-8 bytes of training text, all domains together.
        heldout_bytes: UTF-8 bytes of each domain's validation set, and of its test set.

    Returns:
        The files: split -> domain -> path.
    """
    written: dict[str, dict[str, Path]] = {split: {} for split in SPLITS}
    for domain, (generate, share) in _DOMAINS.items():
        rng = random.Random(f"{seed}/{domain}")
        seen: set[str] = set()
        for split in ("validation", "test", "train"):  # small ones first: their texts don't depend on train_bytes
            path = Path(folder) / split / f"{domain}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_split(path, rng, generate, seen, train_bytes * share if split == "train" else heldout_bytes)
            written[split][domain] = path
    return written


def _write_split(path: Path, rng: random.Random, generate: Callable, seen: set[str], size: float) -> None:
    done = 0
    with replacing(path) as file:
        while done < size:
            text = _unseen(rng, generate, seen)
            done += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")


def _unseen(rng: random.Random, generate: Callable, seen: set[str]) -> str:
    for _ in range(1000):
        text = generate(rng)
        if text not in seen:
            seen.add(text)
            return text
    raise DataError("the synthetic grammar has no more new documents\n  fix: ask for a smaller corpus")
