"""What verbs share: sizes as people write them, options of several verbs, a bar on a terminal alone."""

import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from megatron_sky.cli._common import ProgressBar, check_nproc, parse_size, verb_group, with_options
from megatron_sky.errors import ConfigError


@pytest.mark.parametrize(("text", "size"), [("5G", 5 * 10**9), (" 100B ", 10**11), ("1_000", 1000), ("1.5k", 1500)])
def test_sizes(text, size):
    assert parse_size(text, "--file-size", "write 5G") == size


@pytest.mark.parametrize("text", ["", "big", "-1", "1.5", "5 GB"])
def test_what_is_no_size_names_the_option(text):
    with pytest.raises(ConfigError, match="--file-size") as caught:
        parse_size(text, "--file-size", "write 5G")
    assert "fix: write 5G" in str(caught.value)


@pytest.mark.parametrize(("nproc", "world_size", "wrong"), [(2, 4, True), (2, 1, False), (None, 4, False)])
def test_processes_are_started_by_one(nproc, world_size, wrong):
    if wrong:
        with pytest.raises(ConfigError, match="this is already rank 3 of 4"):
            check_nproc(nproc, 3, world_size)
    else:
        check_nproc(nproc, 3, world_size)


def options(size: Annotated[int, typer.Option(min=1)] = 3, name: str = "x") -> dict:
    return {"size": size, "name": name}


def test_shared_options_are_a_verbs_own():
    app = verb_group("Help.")

    @app.command()
    @with_options(options)
    def verb(word: str, options, loud: bool = False) -> None:
        """A verb."""
        typer.echo(f"{word} {options()} {loud}")

    @app.command()
    def other() -> None:
        """Another."""

    run = CliRunner().invoke
    assert run(app, ["verb", "w", "--size", "5", "--loud"]).output == "w {'size': 5, 'name': 'x'} True\n"
    assert run(app, ["verb", "w"]).output == "w {'size': 3, 'name': 'x'} False\n"
    assert run(app, ["verb", "w", "--size", "0"]).exit_code == 2
    assert "--name" in run(app, ["verb", "--help"]).output
    assert list(inspect.signature(verb).parameters) == ["word", "loud", "size", "name"]


def test_a_bar_is_silent_where_nobody_looks(capsys):
    with ProgressBar("reading") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")
