"""A finished corpus for people: its funnel as text, and samples of its documents."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sky.corpus.grams import hash_text
from megatron_sky.corpus.ledger import StageAccount
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.corpus.skips import Skip
from megatron_sky.data.ingest.compressed import open_compressed
from megatron_sky.errors import RunError
from megatron_sky.files import parse_json, read_json, real_path
from megatron_sky.records import read_record

_EXCERPT = 600  # characters of a sample
_SAMPLES = 12


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
    samples = [sample for one in _smallest(place, pattern, count, rule).values() for _, _, sample in one]
    if not samples:
        what = f"of stage {stage or 'any'}, rule {rule or 'any'}" if is_dropped else "kept"
        fix = "see the rules in card.md; dropped documents are kept with execution.keep_dropped=true"
        raise RunError(f"{place}: no documents {what}\n  fix: {fix}")
    return samples


def sample_of_each_rule(folder: Path, stages: Iterable[str]) -> list[Sample]:
    """One dropped document for each rule of each stage, in order, where they were kept; files are read once."""
    samples = []
    for stage in stages:
        smallest = _smallest(folder / "dropped", f"{stage}/*.jsonl.zst", 1, "", by_rule=True)
        samples += [smallest[rule][0][2] for rule in sorted(smallest)]
    return samples


def _smallest(
    place: Path, pattern: str, count: int, rule: str, *, by_rule: bool = False
) -> dict[str, list[tuple[int, str, Sample]]]:
    """The `count` documents of the smallest hashes, with hash and id: of one rule or (empty) any, or of each rule."""
    smallest: dict[str, list[tuple[int, str, Sample]]] = {}
    for path in sorted(place.glob(pattern)):
        for document in _documents(path):
            metadata = document.get("metadata") or document
            if rule and metadata.get("rule") != rule:
                continue
            least = smallest.setdefault(metadata["rule"] if by_rule else "", [])
            key = hash_text(document["id"])
            if len(least) < count or key < least[-1][0]:
                least.append((key, document["id"], _sample(document, metadata)))
                least.sort(key=lambda entry: entry[:2])
                del least[count:]
    return smallest


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
