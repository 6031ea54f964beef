"""`megatron-sky eval ...`: the verbs of the `evaluate` package."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_sky.cli._common import Nproc, check_nproc, verb_group, with_options

if TYPE_CHECKING:
    from megatron_sky.evaluate.score_models import Options

app = verb_group(
    "Loss and perplexity per domain, signs of leakage, and benchmarks, of native and Hugging Face checkpoints."
)

Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]CHECKPOINT...", help="Checkpoints, run folders (their latest), Hugging Face folders."
    ),
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens of a batch, padding included.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for JSON, CSV, Markdown, picture and each document's loss; written after each model."),
]


def scoring_options(
    key: Annotated[
        list[str] | None,
        typer.Option(help="Name of the text in a line; several are joined by a space. Default: text."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens; default: the smallest of the models' own.")
    ] = None,
    max_chars: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Cut texts at this many characters; 0: not at all. Default: context / 3 for loss, 0 for leakage.",
        ),
    ] = None,
    max_documents: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents of a set.")] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Score documents longer than the context by windows that advance this many tokens."),
    ] = None,
    begin: Annotated[
        str,
        typer.Option(
            help="What goes before a document: auto (as in training), bos, eod, or none (first token unscored)."
        ),
    ] = "auto",
    batch_tokens: BatchTokens = 4096,
    tp_size: Annotated[int, typer.Option(min=1, help="Split native models over this many tensor-parallel ranks.")] = 1,
    pp_size: Annotated[int, typer.Option(min=1, help="Split native models over this many pipeline stages.")] = 1,
) -> "Options":
    """How documents are scored, from the options that the verbs share."""
    from megatron_sky.errors import ConfigError, Problem
    from megatron_sky.evaluate.score_models import Options
    from megatron_sky.tokenizer.coder import BEGINS

    if begin not in BEGINS:
        raise ConfigError(Problem("--begin", f"must be one of {', '.join(BEGINS)}", value=begin))
    return Options(
        keys=tuple(key or ["text"]),
        context=context,
        max_characters=max_chars,
        max_documents=max_documents,
        stride=stride,
        begin=begin,
        batch_tokens=batch_tokens,
        tp_size=tp_size,
        pp_size=pp_size,
    )


@app.command()
@with_options(scoring_options)
def loss(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    data: Annotated[list[str], typer.Option(metavar="NAME=FILE", help="A domain's JSONL file; once for each file.")],
    options: Callable[[], "Options"],
    reference_tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer whose tokens normalise the losses of all models; default: the first model's."),
    ] = None,
    out: Out = None,
    nproc: Nproc = None,
) -> None:
    """Loss, normalised loss, bits per byte and perplexity of each domain, several models in one table."""

    def work(info) -> None:
        from megatron_sky.evaluate.run import evaluate_loss
        from megatron_sky.evaluate.tables import loss_markdown

        results = evaluate_loss(
            checkpoints, data, options(), reference_tokenizer=reference_tokenizer, out=out, info=info
        )
        if info.rank == 0:
            _show(results, loss_markdown(results))

    _on_ranks(ctx, ["eval", "loss"], nproc, work)


@app.command()
@with_options(scoring_options)
def leakage(
    ctx: typer.Context,
    options: Callable[[], "Options"],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]CHECKPOINT...", help="As for eval loss; may be left out with --published."),
    ] = None,
    train: Annotated[list[str] | None, typer.Option(help="JSONL of the benchmark's train split.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="JSONL of its test split.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="JSONL of like samples made afterwards.")] = None,
    generate_reference: Annotated[
        str | None, typer.Option(help="Make the reference set by templates with fresh numbers: gsm8k-like.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="CSV (model, L_test, L_train, L_ref) of losses to list above the checkpoints'.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generated reference set and of the bootstrap.")] = 0,
    margin: Annotated[float, typer.Option(min=0.0, help="A difference counts beyond this fraction of L_ref.")] = 0.05,
    out: Out = None,
    nproc: Nproc = None,
) -> None:
    """Whether a benchmark was trained on: its train and test split against samples made afterwards."""

    def work(info) -> None:
        from megatron_sky.evaluate.run import evaluate_leakage
        from megatron_sky.evaluate.tables import leakage_markdown

        results = evaluate_leakage(
            checkpoints or [],
            {"train": train or [], "test": test or [], "reference": reference or []},
            options(),
            generate=generate_reference,
            published=published,
            seed=seed,
            margin=margin,
            out=out,
            info=info,
        )
        if info.rank == 0:
            _show(results, leakage_markdown(results))

    _on_ranks(ctx, ["eval", "leakage"], nproc, work)


@app.command()
def tasks(
    ctx: typer.Context,
    checkpoints: Checkpoints,
    tasks: Annotated[str, typer.Option(help="Names of the harness's tasks, separated by commas.")],
    include_path: Annotated[Path | None, typer.Option(help="Folder with YAML files of further tasks.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each sample; default: the task's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many samples of each task.")] = None,
    batch_tokens: BatchTokens = 4096,
    out: Out = None,
    nproc: Nproc = None,
) -> None:
    """Benchmarks by EleutherAI's lm-eval harness; offline where the tasks' data are local files."""

    def work(info) -> None:
        from megatron_sky.evaluate.tasks import evaluate_tasks, tasks_markdown

        scores = evaluate_tasks(
            checkpoints,
            [part.strip() for part in tasks.split(",") if part.strip()],
            include_path=include_path,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_tokens=batch_tokens,
            out=out,
            info=info,
        )
        if info.rank == 0:
            print(tasks_markdown(scores))

    _on_ranks(ctx, ["eval", "tasks"], nproc, work)


@app.command()
def answers(
    checkpoints: Checkpoints,
    data: Annotated[list[str], typer.Option(help="Held-out conversations: JSONL, JSON or Parquet; more than once.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered side by side, at most.")] = 16,
    chat_template: Annotated[
        str | None, typer.Option(help="skywork, chatml, llama2 or a Jinja file. Default: each tokenizer's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers.json and answers.md.")] = None,
) -> None:
    """How many last answers of held-out conversations a chat model gives to the letter, greedily."""
    from megatron_sky.cli._common import log_to_screen
    from megatron_sky.evaluate.answers import answers_markdown, evaluate_answers

    log_to_screen()
    results = evaluate_answers(
        checkpoints,
        data,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chat_template=chat_template,
        out=out,
    )
    print(answers_markdown(results))


def _show(results, words: str) -> None:
    """Prints the tables; a model that failed is an error then."""
    from megatron_sky.evaluate.score_models import failure_of

    print(words, flush=True)
    if results.failed:
        raise failure_of(results)


def _on_ranks(ctx: typer.Context, verb: list[str], nproc: int | None, work: Callable) -> None:
    """Runs `work(info)` here, or in `nproc` new processes that get the same arguments; ranks may also come from
    torchrun or Slurm."""
    from megatron_sky.distributed.helpers import end_at_once
    from megatron_sky.distributed.launch import guard, rank_info, run_local, watch_launcher
    from megatron_sky.log import setup_logging

    info = rank_info()
    if info.world_size > 1:
        end_at_once()
        watch_launcher()
    check_nproc(nproc, info.rank, info.world_size)
    if nproc is not None and nproc > 1:
        run_local([*verb, *_arguments(ctx)], nproc)
        return
    setup_logging(info.rank, info.world_size, None)
    if info.world_size == 1:
        work(info)
    else:
        guard(lambda: work(info), info.rank)


def _arguments(ctx: typer.Context) -> list[str]:
    """The command line again, without --nproc."""
    options: list[str] = []
    arguments: list[str] = []
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name)
        if parameter.name == "nproc" or value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            arguments += map(str, values)
        else:
            options += [word for value in values for word in (parameter.opts[0], str(value))]
    return [*options, *arguments]
