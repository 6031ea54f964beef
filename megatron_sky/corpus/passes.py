"""The passes over a corpus, each a datatrove pipeline of as many tasks as it has units, partitions or outputs.

A pass begins when the one before is done. What a pass gives to the next lies in `<out>/work`, a file for each unit.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

from megatron_sky.corpus.duplicates import (
    ChooseExact,
    ChooseNear,
    DropLosers,
    Signatures,
    SkipLosers,
    WriteKeys,
    WriteQualities,
    minhash_config,
)
from megatron_sky.corpus.extract import Extract
from megatron_sky.corpus.judge import Decontaminate, JudgeForm, JudgeLanguage, Mask, Route
from megatron_sky.corpus.outputs import Publish, Summarize, Tokenize, WriteOutputs
from megatron_sky.corpus.plan import Plan
from megatron_sky.corpus.quality import JudgeQuality
from megatron_sky.corpus.read import ReadUnits
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.corpus.recurrence import CountParagraphs, CutParagraphs, WriteParagraphs
from megatron_sky.corpus.skips import Skip, read_skips, skipped_tasks
from megatron_sky.corpus.stage import After, Stage, UnitReader, UnitWriter


@dataclass(frozen=True)
class Pass:
    """One datatrove pipeline. `of` says what a task is: a unit, a partition, ..."""

    name: str
    steps: list[PipelineStep | Callable]
    num_tasks: int
    of: str

    @property
    def stages(self) -> list[str]:
        """Those of its steps that keep an account."""
        return [step.stage for step in self.steps if isinstance(step, Stage)]


def stages_of(recipe: CorpusRecipe) -> tuple[str, ...]:
    """The stages that keep an account, in order."""
    return (
        *("read", "extract", "language", "heuristics"),
        *(("quality",) if recipe.quality.classifier or recipe.quality.perplexity else ()),
        *(("exact_duplicates",) if recipe.duplicates.exact or recipe.duplicates.url else ()),
        *(("recurrence",) if recipe.recurrence.enabled else ()),
        *(("near_duplicates",) if recipe.duplicates.near.enabled else ()),
        "privacy",
        *(("decontamination",) if recipe.decontamination.benchmarks else ()),
        "route",
    )


def build_passes(recipe: CorpusRecipe, plan: Plan, folder: Path) -> list[Pass]:
    """All passes in order; `folder` is absolute."""
    skips, stages = read_skips(folder), stages_of(recipe)
    passes = [_read(recipe, plan, folder, skips), *_exact(recipe, folder), *_recurrence(recipe, plan, folder)]
    passes += [_clean(recipe, plan, folder), *_near(recipe, folder), _finish(recipe, plan, folder)]
    _skip(passes, skips)
    passes.append(Pass("publish", [Publish(folder, folder / "work" / "outputs", stages)], 1, "corpus"))
    if recipe.tokens.tokenizer:
        tokenize = Tokenize(folder, recipe.outputs, recipe.tokens.tokenizer)
        passes.append(Pass("tokenize", [tokenize], len(tokenize.jobs), "output"))
    passes.append(Pass("summary", [Summarize(folder, recipe, stages)], 1, "corpus"))
    for before, after in itertools.pairwise(passes):
        after.steps.insert(0, After(folder, before.name, before.num_tasks))
    return passes


def _skip(passes: list[Pass], skips: Sequence[Skip]) -> None:
    """Makes passes over units read no documents of those that are skipped there, and their first stage drop them."""
    pending: frozenset[int] = frozenset()
    before = ""
    for one in passes:
        tasks = skipped_tasks(skips, one.name)
        stages = [step for step in one.steps if isinstance(step, Stage)]
        for step in one.steps:
            if isinstance(step, UnitReader):
                step.skipped = tasks
        if one.name != "read" and one.name != "paragraphs":
            pending |= tasks
        if stages and before:
            stages[0].before, stages[0].skipped, pending = before, pending, frozenset()
        before = stages[-1].stage if stages else before


def _read(recipe: CorpusRecipe, plan: Plan, folder: Path, skips: Sequence[Skip]) -> Pass:
    keep, work = recipe.execution.keep_dropped, folder / "work"
    steps: list[PipelineStep | Callable] = [
        ReadUnits(folder, plan.units, recipe.sources, recipe.read, keep, skipped_tasks(skips, "read")),
        Extract(folder, recipe.extract, keep),
        JudgeLanguage(folder, recipe.language, keep),
        JudgeForm(folder, recipe),
        *([JudgeQuality(folder, recipe.quality, keep)] if "quality" in stages_of(recipe) else []),
        UnitWriter(work / "documents"),
        WriteKeys(work / "keys", recipe.duplicates),
    ]
    return Pass("read", steps, len(plan.units), "unit")


def _exact(recipe: CorpusRecipe, folder: Path) -> list[Pass]:
    if "exact_duplicates" not in stages_of(recipe):
        return []
    step = ChooseExact(folder / "work" / "keys", folder / "work" / "copies")
    return [Pass("copies", [step], recipe.duplicates.partitions, "partition")]


def _recurrence(recipe: CorpusRecipe, plan: Plan, folder: Path) -> list[Pass]:
    config, work = recipe.recurrence, folder / "work"
    if not config.enabled:
        return []
    steps: list[PipelineStep | Callable] = [UnitReader(work / "documents"), SkipLosers(work / "copies")]
    steps.append(WriteParagraphs(work / "paragraphs", config))
    count = CountParagraphs(work / "paragraphs", work / "recurrent", config)
    return [
        Pass("paragraphs", steps, len(plan.units), "unit"),
        Pass("recurrence", [count], config.partitions, "partition"),
    ]


def _clean(recipe: CorpusRecipe, plan: Plan, folder: Path) -> Pass:
    keep, work, stages = recipe.execution.keep_dropped, folder / "work", stages_of(recipe)
    steps: list[PipelineStep | Callable] = [UnitReader(work / "documents")]
    if "exact_duplicates" in stages:
        steps.append(DropLosers("exact_duplicates", folder, work / "copies", keep))
    if "recurrence" in stages:
        steps.append(CutParagraphs(folder, work / "recurrent", recipe.recurrence, keep))
    steps.append(UnitWriter(work / "cleaned"))
    if "near_duplicates" in stages:
        steps += [WriteQualities(work / "qualities"), Signatures(work / "signatures", recipe.duplicates.near)]
    return Pass("clean", steps, len(plan.units), "unit")


def _near(recipe: CorpusRecipe, folder: Path) -> list[Pass]:
    config, work = recipe.duplicates.near, folder / "work"
    if not config.enabled:
        return []
    minhash = minhash_config(config)
    buckets = MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=minhash, lines_to_buffer=1000)
    cluster = MinhashDedupCluster(str(work / "buckets"), str(work / "clusters"), config=minhash, save_cluster_id=True)
    choose = ChooseNear(work / "clusters", work / "qualities", work / "near")
    return [
        Pass("buckets", [buckets], config.num_buckets, "bucket"),
        Pass("clusters", [cluster, choose], 1, "corpus"),
    ]


def _finish(recipe: CorpusRecipe, plan: Plan, folder: Path) -> Pass:
    keep, work, stages = recipe.execution.keep_dropped, folder / "work", stages_of(recipe)
    steps: list[PipelineStep | Callable] = [UnitReader(work / "cleaned")]
    if "near_duplicates" in stages:
        steps.append(DropLosers("near_duplicates", folder, work / "near", keep))
    steps.append(Mask(folder, recipe))
    if "decontamination" in stages:
        steps.append(Decontaminate(folder, work / "benchmarks.npz", keep))
    steps += [Route(folder, recipe.outputs, keep), WriteOutputs(work / "outputs")]
    return Pass("finish", steps, len(plan.units), "unit")
