"""The command line: one verb, one function. A verb imports its package when called, so help is quick."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_sky import __version__
from megatron_sky.cli import checkpoint as cli_checkpoint
from megatron_sky.cli import convert as cli_convert
from megatron_sky.cli import data as cli_data
from megatron_sky.cli import doctor as cli_doctor
from megatron_sky.cli import eval as cli_eval
from megatron_sky.cli import migrate as cli_migrate
from megatron_sky.cli import slurm as cli_slurm
from megatron_sky.cli import tokenizer as cli_tokenizer
from megatron_sky.errors import RunError, SkyError

app = typer.Typer(
    name="megatron-sky",
    help="The open training system behind Skywork-13B, on megatron-core: from a laptop's CPU to 512 GPUs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE... KEY=VALUE...", help="YAML files, layered left to right; then overrides."),
]


INTERRUPTED = 130


def main() -> None:
    """Entry point: what a user can mend is told in words, with an exit code; the rest keeps its traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path whose name is no UTF-8 is printed as it is
    try:
        app()
    except SkyError as error:
        print(f"megatron-sky: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        mend = "see that it is there, that you may read or write it, and that its disk has room"
        print(f"megatron-sky: {error.filename}: {error.strerror}\n  mend: {mend}", file=sys.stderr)
        sys.exit(RunError.exit_code)
    except SystemExit as left:
        if left.code == INTERRUPTED:  # typer's answer to Ctrl-C
            print("megatron-sky: interrupted", file=sys.stderr)
        raise


app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_convert.app, name="convert")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_slurm.app, name="slurm")
app.add_typer(cli_eval.app, name="eval")
app.add_typer(cli_tokenizer.app, name="tokenizer")
app.command()(cli_convert.release)
app.command()(cli_doctor.doctor)
app.command("from-args", context_settings={"ignore_unknown_options": True})(cli_migrate.from_args)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"megatron-sky {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the corpus, the tokenizer and the run.")] = Path(
        "runs/quickstart"
    ),
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and data order.")] = 1234,
) -> None:
    """Corpus, tokenizer, training at TP2, resume at PP2, report: the whole road in minutes, on any machine."""
    from megatron_sky.quickstart import run

    run(out, seed=seed)


@app.command()
def train(
    recipe: Recipe,
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many processes on this machine.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; start nothing.")
    ] = False,
    world_size: Annotated[int | None, typer.Option(min=1, help="With --dry-run: plan for this many ranks.")] = None,
    session: Annotated[str | None, typer.Option(help="Train only this session of the recipe (train.session).")] = None,
) -> None:
    """Train, or continue, the run that the recipe describes.

    Ranks come from --nproc, from torchrun's or Slurm's variables, or it is one process alone.
    """
    from megatron_sky.config.load import load_recipe
    from megatron_sky.distributed.launch import guard, hold_leave_signals, rank_info, run_local, watch_launcher
    from megatron_sky.errors import ConfigError, Problem

    if session is not None:
        recipe = [*recipe, f"train.session={session}"]
    info = rank_info()
    if info.world_size > 1:
        hold_leave_signals()
        watch_launcher()
    if world_size is not None and not dry_run:
        raise ConfigError(
            Problem("--world-size", "has an effect with --dry-run only", "use --nproc to start processes")
        )
    if nproc is not None and info.world_size > 1:
        mend = "leave --nproc out under torchrun or srun, which start the processes themselves"
        raise ConfigError(Problem("--nproc", f"this is already rank {info.rank} of {info.world_size}", mend, nproc))
    config = load_recipe(recipe)
    ranks = nproc or info.world_size
    if dry_run:
        from megatron_sky.trainer import run_folder
        from megatron_sky.trainer.dry_run import print_plan

        run_folder.check_free(Path(config.train.run_dir))
        print_plan(config, world_size or ranks)
        return
    if nproc is not None and nproc > 1:
        from megatron_sky.trainer.run import check_before, check_start

        check_before(config, nproc)
        check_start(config)
        run_local(["train", *recipe], nproc)
        return
    from megatron_sky.trainer.run import train as run_training

    if info.world_size == 1:
        run_training(config, info)
    else:
        guard(lambda: run_training(config, info), info.rank)


@app.command()
def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are laid over each other.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; default: report.html in the run's folder, for several runs comparison.html in the "
            "first one's."
        ),
    ] = None,
    evals: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Result file of `megatron-sky eval`, beside those in the runs' eval folders."),
    ] = None,
    page_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="html, or md (pictures in a folder beside it); default: as --out ends, else html."
        ),
    ] = None,
) -> None:
    """Draw runs' losses, sessions, mixture, speed and evaluations into one self-contained HTML page."""
    from megatron_sky.errors import ConfigError, Problem
    from megatron_sky.report import FORMATS, build_report

    endings = {".md": "md", ".html": "html", ".htm": "html", "": "html"}
    if page_format is None and out is not None and out.suffix not in endings:
        mend = "end it in .html or .md, or say which with --format"
        raise ConfigError(Problem("--out", "a page is HTML or Markdown", mend, str(out)))
    page_format = page_format or ("html" if out is None else endings[out.suffix])
    if page_format not in FORMATS:
        raise ConfigError(Problem("--format", f"must be one of {', '.join(FORMATS)}", value=page_format))
    print(build_report(*run_dirs, out=out, evals=evals or (), page_format=page_format))


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or a run folder for its latest.")],
    prompt: Annotated[
        list[str], typer.Argument(help="Texts to continue, each shorter than the model's context length.")
    ],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 takes the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 1234,
) -> None:
    """Continue prompts with a checkpoint of any layout, in this one process."""
    from megatron_sky.log import setup_logging

    setup_logging(rank=0, world_size=1, run_dir=None)
    from megatron_sky.inference.generate import Sampling, generate_texts

    for text in generate_texts(checkpoint, prompt, Sampling(max_tokens, temperature, seed)):
        print(text)


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors that complete and check YAML."""
    import json

    from megatron_sky.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
