"""The page `report.html` of a corpus: a funnel for each source, histograms before and after, samples, the data card.

All numbers come from the account, so that but for the samples the page costs the same whatever the corpus's size.
"Before" is what the stage `language` is given (main texts of all that could be read) or, of scores and perplexities,
the stage `quality`; "after" is what is written out, held-out documents among it. The page has no scripts: its language
is switched by style alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_sky.config.units import format_count
from megatron_sky.corpus.build import require_engine
from megatron_sky.corpus.ledger import Accounts, StageAccount
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.corpus.show import Sample, read_summary, sample_documents, sample_of_each_rule
from megatron_sky.files import read_text, real_path, write_text

_MOST_RULES = 4  # named beside a step of a funnel
_LEAST_KEPT = 6  # samples
_BEFORE = {"characters": "language", "language": "language", "score": "quality", "perplexity": "quality"}
_TITLES = {
    "characters": ("Length, characters", "长度（字符）"),
    "language": ("Language", "语言"),
    "score_zh": ("Score of quality, Chinese", "质量分（中文）"),
    "score_en": ("Score of quality, English", "质量分（英文）"),
    "perplexity_zh": ("Perplexity, Chinese", "困惑度（中文）"),
    "perplexity_en": ("Perplexity, English", "困惑度（英文）"),
    "exact": ("Copies by size of group", "完全重复（按组大小）"),
    "url": ("Same address by size of group", "相同网址（按组大小）"),
    "near": ("Near copies by size of cluster", "近似重复（按簇大小）"),
}
STAGE_NAMES = {
    "read": "读取",
    "extract": "正文提取",
    "language": "语言识别",
    "heuristics": "规则过滤",
    "quality": "质量过滤",
    "exact_duplicates": "完全去重",
    "recurrence": "分布过滤",
    "near_duplicates": "近似去重",
    "privacy": "隐私遮盖",
    "decontamination": "去除评测题",
    "route": "归入领域",
}


@dataclass(frozen=True)
class Bin:
    """Documents of one bin; `name` says where it begins."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Histogram:
    """Documents by bin, before and after; `en` and `zh`: its title."""

    en: str
    zh: str
    bins: Sequence[Bin]

    @property
    def most(self) -> int:
        return max(1, *(max(one.before, one.after) for one in self.bins))


@dataclass(frozen=True)
class Step:
    """A stage in a source's funnel. `top`, `bottom`: its widths, of 1 for all documents of the source."""

    stage: str
    account: StageAccount
    top: float
    bottom: float
    rules: list[tuple[str, int]] = field(default_factory=list)


def write_report(recipe: CorpusRecipe) -> Path:
    """Writes `report.html` into the corpus's folder; its path. Raises RunError where the corpus is not whole."""
    import jinja2

    require_engine(recipe)
    folder = real_path(recipe.out)
    summary = read_summary(folder)
    stages: dict[str, Accounts] = summary["stages"]
    dropped = sample_of_each_rule(folder, stages)
    count = max(_LEAST_KEPT, len(dropped))
    kept = sample_documents(recipe, count=count) if summary["outputs"]["text"] else []
    loader = jinja2.PackageLoader("megatron_sky.corpus")
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    pages.filters |= {"count": lambda number: f"{number:,}", "short": format_count}
    content = pages.get_template("corpus.html").render(
        name=folder.name,
        figures=_figures(summary),
        funnels=funnels(stages),
        histograms=histograms(stages, summary.get("clusters", {})),
        stage_names=STAGE_NAMES,
        pairs=_side_by_side(kept, dropped),
        notes=_notes(stages),
        card=read_text(folder / "card.md"),
        recipe=read_text(folder / "recipe.yaml"),
    )
    write_text(folder / "report.html", content)
    return folder / "report.html"


def _figures(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Names in English and Chinese, value and remark of the figures on top."""
    read = sum(account.given.documents for account in summary["stages"]["read"].values())
    outputs = {kind: list(given.values()) for kind, given in summary["outputs"].items()}
    kept = sum(one["documents"] for given in outputs.values() for one in given)
    size = sum(one["bytes"] for one in outputs["text"])
    tokens = [one["tokens"] for one in outputs["text"] if one["tokens"] is not None]
    held_out = sum(one["documents"] for one in outputs["validation"])
    return [
        ("documents read", "读入文档", f"{read:,}", ""),
        ("documents kept", "保留文档", f"{kept:,}", f"{100 * kept / max(1, read):.1f} %"),
        ("of these held out", "其中验证集", f"{held_out:,}", ""),
        ("training text, bytes", "训练文本（字节）", format_count(size), ""),
        *([("training tokens", "训练 token", format_count(sum(tokens)), "")] if tokens else []),
    ]


def funnels(stages: dict[str, Accounts]) -> dict[str, list[Step]]:
    """The steps of each source, and of all of them where there are several."""
    sources = list(dict.fromkeys(source for accounts in stages.values() for source in accounts))
    found = {
        source: _funnel({stage: one.get(source, StageAccount()) for stage, one in stages.items()}) for source in sources
    }
    if len(sources) < 2:
        return found
    return {"": _funnel({stage: _total(accounts) for stage, accounts in stages.items()})} | found


def _total(accounts: Accounts) -> StageAccount:
    total = StageAccount()
    for account in accounts.values():
        total.add(account)
    return total


def _funnel(accounts: dict[str, StageAccount]) -> list[Step]:
    most = max(1, *(account.given.documents for account in accounts.values()))
    steps = []
    for stage, account in accounts.items():
        rules = Counter({rule: amount.documents for rule, amount in account.dropped.items()}).most_common(_MOST_RULES)
        steps.append(Step(stage, account, account.given.documents / most, account.kept.documents / most, rules))
    return steps


def histograms(stages: dict[str, Accounts], clusters: dict[str, dict[str, int]]) -> list[Histogram]:
    """Those that there is anything to show in, in the order of their titles.

    Args:
        clusters: groups by size for each kind of copy, as `corpus.json` has them.
    """
    totals = {stage: _total(stages.get(stage, {})).histograms for stage in (*_BEFORE.values(), "route")}
    found = []
    for name, titles in _TITLES.items():
        if name in ("exact", "url", "near"):
            bins = _cluster_bins({int(size): count for size, count in clusters.get(name, {}).items()})
        else:
            before = totals[_BEFORE[name.partition("_")[0]]].get(name, {})
            bins = _bins(name, before, totals["route"].get(name, {}))
        if bins:
            found.append(Histogram(*titles, bins))
    return found


def _bins(name: str, before: dict[str, int], after: dict[str, int]) -> list[Bin]:
    """Empty ones between others too, so that the axis is even."""
    keys = sorted({*before, *after}, key=lambda key: -before.get(key, 0))
    names = {key: key for key in keys}
    if name.startswith("score"):
        names = {f"{tenth / 10}": f"{tenth / 10}" for tenth in range(10)} if keys else {}
    elif name != "language" and keys:
        powers = [int(key).bit_length() - 1 for key in keys]
        names = {str(1 << power): _power(1 << power) for power in range(min(powers), max(powers) + 1)}
    return [Bin(shown, before.get(key, 0), after.get(key, 0)) for key, shown in names.items()]


def _power(value: int) -> str:
    """1024 as 1k, which are so told in bins by powers of two."""
    for power, unit in ((30, "G"), (20, "M"), (10, "k")):
        if value >= 1 << power:
            return f"{value >> power}{unit}"
    return str(value)


def _cluster_bins(counts: dict[int, int]) -> list[Bin]:
    """Documents in groups of 2, 3, 4, 5 to 8, 9 to 16 ...: all of them, and the one of each group that stays."""
    before, after = Counter[int](), Counter[int]()
    for size, count in counts.items():
        last = size if size <= 4 else 1 << (size - 1).bit_length()
        before[last] += size * count
        after[last] += count
    return [
        Bin(str(last) if last <= 4 else f"{last // 2 + 1}-{last}", before[last], after[last]) for last in sorted(before)
    ]


def _side_by_side(kept: list[Sample], dropped: list[Sample]) -> list[tuple[Sample | None, Sample | None]]:
    rows = max(len(kept), len(dropped))
    columns = ([*given, *[None] * (rows - len(given))] for given in (kept, dropped))
    return list(zip(*columns, strict=True))


def _notes(stages: dict[str, Accounts]) -> list[tuple[str, str, str, int]]:
    return [
        (stage, source, name, count)
        for stage, accounts in stages.items()
        for source, account in accounts.items()
        for name, count in sorted(account.notes.items())
    ]
