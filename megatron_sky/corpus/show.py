"""A finished corpus for people: its funnel as text, samples of its documents, and the page `report.html`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sky.corpus.build import require_engine
from megatron_sky.corpus.grams import hash_text
from megatron_sky.corpus.ledger import StageAccount
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.corpus.skips import Skip
from megatron_sky.data.ingest.compressed import open_compressed
from megatron_sky.errors import RunError
from megatron_sky.files import parse_json, read_json, read_text, real_path, write_text
from megatron_sky.records import read_record

_EXCERPT = 600  # characters of a sample
_SAMPLES = 12
_WIDEST = 30  # rem


@dataclass(frozen=True)
class Sample:
    """A document with its origin in words."""

    title: str
    text: str


def read_summary(folder: Path) -> dict[str, Any]:
    """What `corpus.json` holds. Raises RunError where the corpus is not whole."""
    path = folder / "corpus.json"
    if not path.exists():
        raise RunError(f"{folder}: no whole corpus is here\n  fix: megatron-sky corpus build RECIPE, until it ends")
    summary = read_json(path)
    accounts = {
        stage: {source: read_record(StageAccount, one) for source, one in given.items()}
        for stage, given in summary["stages"].items()
    }
    return summary | {"stages": accounts}


def funnel(folder: Path) -> str:
    """Each stage's documents and drops, and the outputs, in lines."""
    summary = read_summary(folder)
    lines = [f"{'stage':18}{'came':>12}{'went on':>12}  dropped"]
    for stage, accounts in summary["stages"].items():
        total = StageAccount()
        for account in accounts.values():
            total.add(account)
        rules = Counter({rule: amount.documents for rule, amount in total.dropped.items()}).most_common()
        dropped = ", ".join(f"{rule} {count:,}" for rule, count in rules) or "-"
        lines.append(f"{stage:18}{total.given.documents:>12,}{total.kept.documents:>12,}  {dropped}")
    for kind, outputs in summary["outputs"].items():
        for name, output in outputs.items():
            tokens = "" if output["tokens"] is None else f", {output['tokens']:,} tokens"
            lines.append(f"{kind}/{name}: {output['documents']:,} documents, {output['bytes']:,} bytes{tokens}")
    skips = read_record(tuple[Skip, ...], summary.get("skipped", []))
    lines += [f"skipped: task {skip.task} of {skip.name}, {skip.input}" for skip in skips]
    return "\n".join(lines)


def sample_documents(recipe: CorpusRecipe, *, stage: str = "", rule: str = "", count: int = _SAMPLES) -> list[Sample]:
    """Some documents, the same ones each time: those whose hashes are the smallest.

    Dropped ones where a stage or rule is named, else kept ones. Raises RunError where there are none.
    """
    folder = real_path(recipe.out)
    is_dropped = bool(stage or rule)
    place, pattern = (folder / "dropped", f"{stage or '*'}/*.jsonl.zst") if is_dropped else (folder / "text", "*/*.zst")
    smallest: list[tuple[int, str, Sample]] = []
    for path in sorted(place.glob(pattern)):
        for document in _documents(path):
            metadata = document.get("metadata") or document
            if rule and metadata.get("rule") != rule:
                continue
            key = hash_text(document["id"])
            if len(smallest) < count or key < smallest[-1][0]:
                smallest.append((key, document["id"], _sample(document, metadata)))
                smallest = sorted(smallest, key=lambda entry: entry[:2])[:count]
    if not smallest:
        what = f"of stage {stage or 'any'}, rule {rule or 'any'}" if is_dropped else "kept"
        fix = "see the rules in card.md; dropped documents are kept with execution.keep_dropped=true"
        raise RunError(f"{place}: no documents {what}\n  fix: {fix}")
    return [sample for _, _, sample in smallest]


def _sample(document: dict[str, Any], metadata: dict[str, Any]) -> Sample:
    reason = f"{metadata['dropped_by']}: {metadata['rule']}; " if "rule" in metadata else ""
    text = document.get("text", "")
    shown = text[:_EXCERPT] + (" ..." if len(text) > _EXCERPT else "")
    address = f", {metadata['url']}" if metadata.get("url") else ""
    score = f", score {metadata['score']}" if "score" in metadata else ""
    return Sample(f"{reason}{metadata['source']}, {metadata['file']} at {metadata['place']}{address}{score}", shown)


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    with open_compressed(path, ".zst") as file:
        for line in file:
            yield parse_json(line)


def write_report(recipe: CorpusRecipe) -> Path:
    """Writes `report.html` into the corpus's folder; its path."""
    import jinja2

    require_engine(recipe)
    folder = real_path(recipe.out)
    summary = read_summary(folder)
    loader = jinja2.PackageLoader("megatron_sky.corpus")
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    dropped = _dropped_samples(recipe, summary)
    content = pages.get_template("corpus.html").render(
        name=folder.name,
        funnels=_funnels(summary["stages"]),
        notes=_notes(summary["stages"]),
        lengths=_lengths(folder),
        clusters=_clusters(folder),
        kept=sample_documents(recipe) if summary["outputs"]["text"] else [],
        dropped=dropped,
        card=read_text(folder / "card.md"),
        recipe=read_text(folder / "recipe.yaml"),
    )
    write_text(folder / "report.html", content)
    return folder / "report.html"


def _dropped_samples(recipe: CorpusRecipe, summary: dict[str, Any]) -> list[Sample]:
    """One or more of each rule, as many as there is room for."""
    if not recipe.execution.keep_dropped:
        return []
    rules = [
        (stage, rule)
        for stage, accounts in summary["stages"].items()
        for rule in sorted({rule for account in accounts.values() for rule in account.dropped})
    ]
    return [sample for stage, rule in rules for sample in sample_documents(recipe, stage=stage, rule=rule, count=1)]


def _funnels(stages: dict[str, dict[str, StageAccount]]) -> list[dict[str, Any]]:
    sources = list(dict.fromkeys(source for accounts in stages.values() for source in accounts))
    funnels = []
    for source in sources:
        rows = []
        most = max(1, *(accounts[source].given.documents for accounts in stages.values() if source in accounts))
        for stage, accounts in stages.items():
            account = accounts.get(source, StageAccount())
            kept, dropped = account.kept.documents, account.num_dropped
            widths = {"kept_width": _WIDEST * kept / most, "dropped_width": _WIDEST * dropped / most}
            rows.append({"stage": stage, "kept": kept, "dropped": dropped, **widths})
        funnels.append({"name": source, "rows": rows})
    return funnels


def _notes(stages: dict[str, dict[str, StageAccount]]) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "source": source, "name": name, "count": count}
        for stage, accounts in stages.items()
        for source, account in accounts.items()
        for name, count in sorted(account.notes.items())
    ]


def _lengths(folder: Path) -> list[dict[str, Any]]:
    """Documents by powers of two of their characters."""
    counts: Counter[int] = Counter()
    for path in sorted((folder / "text").glob("*/*.jsonl.zst")):
        counts.update(len(document["text"]).bit_length() for document in _documents(path))
    most = max(counts.values(), default=1)
    return [
        {
            "name": f"{1 << (bits - 1):,} to {(1 << bits) - 1:,}",
            "count": counts[bits],
            "width": _WIDEST * counts[bits] / most,
        }
        for bits in sorted(counts)
    ]


def _clusters(folder: Path) -> list[tuple[int, int]]:
    path = folder / "work" / "near" / "cluster_sizes" / "sizes.npy"
    if not path.exists():  # the stage is off, or the work folder was deleted
        return []
    sizes, counts = np.load(path)
    return [(int(size), int(count)) for size, count in zip(sizes, counts, strict=True)]
