"""What the verbs share: how a group of them looks, options that several take, and progress on a terminal."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

Recipe = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE... KEY=VALUE...", help="YAML files, layered left to right; then overrides."),
]
INPUTS_HELP = "JSONL or .txt files (also .gz, .bz2, .xz, .zst), Parquet files, folders of such, globs."
Nproc = Annotated[int | None, typer.Option(min=1, help="Start this many processes on this machine.")]


def verb_group(text: str, name: str | None = None) -> typer.Typer:
    """A group of verbs, as all of the program's look; `text` is its help."""
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def with_options(collect: Callable) -> Callable[[Callable], Callable]:
    """Gives a verb the parameters of `collect` as further options of its own.

    The verb's parameter `options` is then a function without arguments: what `collect` makes of them.
    """

    def decorate(verb: Callable) -> Callable:
        own, shared = inspect.signature(verb).parameters, inspect.signature(collect).parameters

        @functools.wraps(verb)
        def called(**given: object) -> object:
            values = {name: given.pop(name) for name in shared}
            return verb(options=lambda: collect(**values), **given)

        listed = [parameter for name, parameter in own.items() if name != "options"] + list(shared.values())
        as_keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in listed]
        vars(called)["__signature__"] = inspect.Signature(as_keywords)
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
        return called

    return decorate


def check_nproc(nproc: int | None, rank: int, world_size: int) -> None:
    """Raises ConfigError where --nproc is given to a process that a launcher started."""
    from megatron_sky.errors import ConfigError, Problem

    if nproc is not None and world_size > 1:
        fix = "leave --nproc out under torchrun or srun, which start the processes themselves"
        raise ConfigError(Problem("--nproc", f"this is already rank {rank} of {world_size}", fix, nproc))


def parse_size(text: str, option: str, fix: str) -> int:
    """A count as people write it (`5G`, `100B`). Raises ConfigError naming the option."""
    from megatron_sky.config.units import parse_count
    from megatron_sky.errors import ConfigError, Problem

    try:
        return parse_count(text.strip())
    except ValueError as error:
        raise ConfigError(Problem(option, str(error), fix, text)) from None


def log_to_screen() -> None:
    from megatron_sky.log import setup_logging

    setup_logging(rank=0, world_size=1, run_dir=None)


class ProgressBar:
    """A progress bar on a terminal; silent elsewhere. Called with (done, total) bytes."""

    def __init__(self, title: str):
        self._title = title
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            from rich import progress

            from megatron_sky.log import screen

            columns = (
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=screen())
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.start()  # and its thread, which must not be there when worker processes are forked
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
