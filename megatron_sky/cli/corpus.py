"""`megatron-sky corpus ...`: crawl files to text and token files by domain. Verbs import their package when called."""

from typing import Annotated

import typer

from megatron_sky.cli._common import INPUTS_HELP, Recipe, parse_size, verb_group

app = verb_group("Corpora: crawl files to cleaned text and token files by domain, with every document accounted for.")


@app.command()
def build(
    recipe: Recipe,
    executor: Annotated[str, typer.Option(help="local: this machine's cores; slurm: arrays of jobs.")] = "local",
    skip_task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PASS:TASK",
            help="A task that fails (see status): its input's documents are dropped, in the account.",
        ),
    ] = None,
) -> None:
    """Build a corpus. Given again after an interruption, it goes on with the tasks that are missing."""
    from megatron_sky.corpus.build import build as build_corpus
    from megatron_sky.corpus.recipe import load_corpus_recipe
    from megatron_sky.corpus.show import funnel
    from megatron_sky.errors import ConfigError, Problem
    from megatron_sky.log import say

    if executor not in ("local", "slurm"):
        raise ConfigError(Problem("--executor", "must be local or slurm", value=executor))
    loaded = load_corpus_recipe(recipe)
    folder = build_corpus(loaded, executor, say, skip=skip_task or [])
    if executor == "local":
        print(funnel(folder))


@app.command()
def train_classifier(
    out: Annotated[str, typer.Argument(metavar="FILE", help="The classifier, for a recipe's quality.classifier.")],
    positive: Annotated[list[str], typer.Option(help=f"Documents like those to keep: {INPUTS_HELP}")],
    negative: Annotated[list[str], typer.Option(help="Documents like those to drop: an unfiltered crawl, for one.")],
    language: Annotated[
        list[str] | None, typer.Option(help="Language to train for, zh or en; may be given twice; none: both.")
    ] = None,
    key: Annotated[str, typer.Option(help="Field of the text, of JSONL and Parquet.")] = "text",
    held_out: Annotated[float, typer.Option(min=0.01, max=0.5, help="Share of documents to measure with.")] = 0.1,
    max_characters: Annotated[str, typer.Option(help="Taken of each class, evenly over its files.")] = "200M",
) -> None:
    """Train a classifier of text quality, and show its precision and recall on held-out documents by threshold."""
    from megatron_sky.corpus.train_classifier import describe
    from megatron_sky.corpus.train_classifier import train_classifier as train
    from megatron_sky.errors import ConfigError, Problem

    languages = list(dict.fromkeys(language or ["zh", "en"]))
    for one in languages:
        if one not in ("zh", "en"):
            raise ConfigError(Problem("--language", "must be zh or en", value=one))
    most = parse_size(max_characters, "--max-characters", "give a number of characters, as 200M")
    print(describe(train(out, positive, negative, languages=languages, key=key, held_out=held_out, max_bytes=most)))


@app.command()
def status(recipe: Recipe) -> None:
    """Show how many tasks of each pass are done, and which have failed or are skipped."""
    from megatron_sky.corpus.build import status as status_of
    from megatron_sky.corpus.recipe import load_corpus_recipe

    for one in status_of(load_corpus_recipe(recipe)):
        print(f"{one.name:12} {one.num_done:>7,} of {one.num_tasks:,} tasks")
        for line in one.remarks:
            print(f"  {line}")


@app.command()
def report(recipe: Recipe) -> None:
    """Write report.html: a funnel for each source, histograms before and after, samples, the data card."""
    from megatron_sky.corpus.page import write_report
    from megatron_sky.corpus.recipe import load_corpus_recipe

    print(write_report(load_corpus_recipe(recipe)))


@app.command()
def inspect(
    recipe: Recipe,
    rule: Annotated[str, typer.Option(help="Rule by which documents were dropped; none: those that were kept.")] = "",
    stage: Annotated[str, typer.Option(help="Stage that dropped them; none: all stages.")] = "",
    count: Annotated[int, typer.Option("-n", min=1, help="How many, the same ones each time.")] = 5,
) -> None:
    """Show documents of a corpus with their origin: dropped ones by their rule, or kept ones."""
    from megatron_sky.corpus.recipe import load_corpus_recipe
    from megatron_sky.corpus.show import sample_documents

    for document in sample_documents(load_corpus_recipe(recipe), stage=stage, rule=rule, count=count):
        print(f"--- {document.title}\n{document.text}\n")
