"""The last passes: the account is proved and the texts take their place; token files; what the corpus is, for readers.

A text's place holds whole outputs only: until the account adds up they lie in the work folder.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter

from megatron_sky.config import strict_yaml
from megatron_sky.corpus.duplicates import read_cluster_sizes
from megatron_sky.corpus.ledger import Accounts, prove, read_ledger
from megatron_sky.corpus.recipe import CorpusOutput, CorpusRecipe
from megatron_sky.corpus.skips import Skip, read_skips
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.meta import read_meta
from megatron_sky.files import real_path, write_json, write_text

KINDS = ("text", "validation")
_TOKENS = {"text": "tokens", "validation": "validation_tokens"}


class WriteOutputs(JsonlWriter):
    """Texts by output, `<folder>/<text or validation>/<name>/<rank>.jsonl.zst`."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), "${output}/${rank}.jsonl.zst", compression="zstd", adapter=_line)
        self.folder = folder

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for path in self.folder.glob(f"*/*/{rank:05d}.jsonl.zst"):  # of an attempt that failed
            path.unlink()
        yield from super().run(data, rank, world_size)


def _line(_writer: object, document: Document) -> dict:
    origin = {key: value for key, value in document.metadata.items() if key != "output"}
    return {"text": document.text, "id": document.id, **origin}


class Publish(PipelineStep):
    """Proves the account and moves the texts to `<folder>/text` and `<folder>/validation`."""

    type, name = "💾 - PUBLISH", "publish"

    def __init__(self, folder: Path, work: Path, stages: Sequence[str]):
        super().__init__()
        self.folder, self.work, self.stages = folder, work, tuple(stages)

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        prove(read_ledger(self.folder, self.stages))
        for kind in KINDS:
            if (self.work / kind).exists():
                (self.work / kind).rename(self.folder / kind)


def output_files(folder: Path, kind: str, name: str) -> list[Path]:
    """An output's text files, in order."""
    return sorted((folder / kind / name).glob("*.jsonl.zst"))


def token_prefix(folder: Path, kind: str, name: str) -> Path:
    """Path prefix of an output's pair."""
    return folder / _TOKENS[kind] / name


class Tokenize(PipelineStep):
    """Task i writes the pair of one output's training or validation texts; none where it has no documents."""

    type, name = "🔢 - TOKENIZER", "tokenize"

    def __init__(self, folder: Path, outputs: Sequence[CorpusOutput], tokenizer: str):
        super().__init__()
        self.folder, self.tokenizer = folder, tokenizer
        self.jobs = [(kind, output.name) for kind in KINDS for output in outputs]

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        kind, name = self.jobs[rank]
        if files := output_files(self.folder, kind, name):
            prefix = token_prefix(self.folder, kind, name)
            tokenize_files(files, prefix, self.tokenizer, TokenizeOptions())


class Summarize(PipelineStep):
    """Writes `corpus.json`, the mixture for training recipes, and the data card."""

    type, name = "📊 - SUMMARY", "summary"

    def __init__(self, folder: Path, recipe: CorpusRecipe, stages: Sequence[str]):
        super().__init__()
        self.folder, self.recipe, self.stages = folder, recipe, tuple(stages)

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        ledger = read_ledger(self.folder, self.stages)
        outputs = {kind: outputs_of(self.folder, self.recipe, ledger, kind) for kind in KINDS}
        if self.recipe.tokens.tokenizer:
            write_text(self.folder / "mixture.yaml", mixture(self.folder, self.recipe, outputs))
        skips = read_skips(self.folder)
        write_text(self.folder / "card.md", card(self.recipe, ledger, outputs, skips))
        accounts = {stage: {source: asdict(one) for source, one in given.items()} for stage, given in ledger.items()}
        places = {"exact": "copies", "url": "copies", "near": "near"}
        clusters = {kind: read_cluster_sizes(self.folder / "work" / place, kind) for kind, place in places.items()}
        summary = {"stages": accounts, "outputs": outputs, "clusters": clusters}
        write_json(self.folder / "corpus.json", summary | {"skipped": [asdict(skip) for skip in skips]})


def outputs_of(folder: Path, recipe: CorpusRecipe, ledger: dict[str, Accounts], kind: str) -> dict[str, dict[str, Any]]:
    """Documents, bytes and tokens of each output that has any."""
    totals: dict[str, dict[str, Any]] = {}
    for output in recipe.outputs:
        key = f"{kind}/{output.name}"
        notes = [account.notes for account in ledger.get("route", {}).values()]
        documents = sum(note.get(key, 0) for note in notes)
        if documents:
            meta = read_meta(token_prefix(folder, kind, output.name))
            size = sum(note.get(f"{key} bytes", 0) for note in notes)
            tokens = None if meta is None else meta.num_tokens
            totals[output.name] = {"documents": documents, "bytes": size, "tokens": tokens}
    return totals


def mixture(folder: Path, recipe: CorpusRecipe, outputs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A layer for training recipes: sources weighted by tokens times repetitions, the plan's cap, validation sets."""
    place = real_path(folder)
    train = [
        {
            "name": output.name,
            "path": str(token_prefix(place, "text", output.name)),
            "weight": outputs["text"][output.name]["tokens"] * output.repeat,
        }
        for output in recipe.outputs
        if output.name in outputs["text"]
    ]
    sets = [{"name": name, "path": str(token_prefix(place, "validation", name))} for name in outputs["validation"]]
    tree: dict[str, Any] = {"data": {"train": train}, "tokenizer": {"path": recipe.tokens.tokenizer}}
    if sets:
        tree["validation"] = {"sets": sets}
    return strict_yaml.dump(tree)


def card(
    recipe: CorpusRecipe,
    ledger: dict[str, Accounts],
    outputs: dict[str, dict[str, dict[str, Any]]],
    skips: Sequence[Skip] = (),
) -> str:
    """The data card: composition, origin and licences, and what was dropped, as Markdown."""
    lines = ["# Data card", "", "## Composition", "", "| output | set | documents | bytes | tokens | repeated |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    repeats = {output.name: output.repeat for output in recipe.outputs}
    for kind, totals in outputs.items():
        for name, total in totals.items():
            tokens = "-" if total["tokens"] is None else f"{total['tokens']:,}"
            repeat = f"{repeats[name]:g}" if kind == "text" else "-"
            lines.append(f"| {name} | {kind} | {total['documents']:,} | {total['bytes']:,} | {tokens} | {repeat} |")
    lines += ["", "## Sources", "", "| source | kind | licence | documents read |", "| --- | --- | --- | ---: |"]
    for source in recipe.sources:
        read = ledger["read"][source.name].given.documents if source.name in ledger.get("read", {}) else 0
        lines.append(f"| {source.name} | {source.kind} | {source.license} | {read:,} |")
    lines += ["", "## Dropped", "", "| stage | rule | documents | bytes |", "| --- | --- | ---: | ---: |"]
    for stage, accounts in ledger.items():
        for rule, (documents, size) in dropped_by_rule(accounts).items():
            lines.append(f"| {stage} | {rule} | {documents:,} | {size:,} |")
    if skips:
        lines += ["", "## Skipped tasks", "", "| pass | task | input | error |", "| --- | ---: | --- | --- |"]
        lines += [f"| {skip.name} | {skip.task} | {skip.input} | {skip.error or '-'} |" for skip in skips]
    return "\n".join(lines) + "\n"


def dropped_by_rule(accounts: Accounts) -> dict[str, tuple[int, int]]:
    """Documents and bytes by rule, of all sources, the most first."""
    totals: dict[str, tuple[int, int]] = {}
    for account in accounts.values():
        for rule, amount in account.dropped.items():
            documents, size = totals.get(rule, (0, 0))
            totals[rule] = documents + amount.documents, size + amount.bytes
    return dict(sorted(totals.items(), key=lambda item: (-item[1][0], item[0])))
