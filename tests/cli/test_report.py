"""`megatron-sky report` as a user types it."""

import html
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_sky.cli.main import app
from megatron_sky.errors import ConfigError


@pytest.fixture
def report():
    """`report(arguments...)`: the lines it prints; what it raises is raised."""

    def run(*arguments):
        return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False).stdout.splitlines()

    return run


def test_the_page_of_a_run(report, tmp_path, write_run):
    run_dir = write_run(tmp_path)
    assert report(run_dir) == [str(run_dir / "report.html")] and (run_dir / "report.html").exists()


def test_several_runs(report, tmp_path, write_run):
    folders = [write_run(tmp_path / each) for each in "ab"]
    assert report(*folders) == [str(folders[0] / "comparison.html")]


@pytest.mark.parametrize(
    ("arguments", "name", "begins"),
    [
        (["--format", "md"], "report.md", "# run"),
        (["--out", "x.md"], "x.md", "# run"),
        (["--out", "x.md", "--format", "html"], "x.md", "<!DOCTYPE"),
        (["--out", "x"], "x", "<!DOCTYPE"),
    ],
)
def test_the_format(report, tmp_path, write_run, monkeypatch, arguments, name, begins):
    run_dir = write_run(tmp_path / "run")
    monkeypatch.chdir(run_dir)
    (path,) = report(run_dir, *arguments)
    assert path.endswith(name) and (run_dir / name).read_text().startswith(begins)


def test_an_unknown_ending_is_refused(report, tmp_path, write_run):
    with pytest.raises(ConfigError, match=r"--out.*HTML or Markdown"):
        report(write_run(tmp_path), "--out", tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()


def test_an_unknown_format_is_refused(report, tmp_path, write_run):
    with pytest.raises(ConfigError, match=r"--format.*must be one of html, md"):
        report(write_run(tmp_path), "--format", "pdf")


def test_a_result_file_that_is_missing_is_told_on_the_page(report, tmp_path, write_run):
    (path,) = report(write_run(tmp_path), "--eval", tmp_path / "no.json", "--eval", tmp_path / "nor.json")
    text = html.unescape(Path(path).read_text(encoding="utf-8"))
    assert "/no.json: can't be read" in text and "/nor.json" in text


@pytest.mark.parametrize("ending", ["html", "md"])
def test_a_folder_whose_name_is_no_utf_8(tmp_path, write_run, ending):
    run_dir = write_run(tmp_path / os.fsdecode(b"caf\xe9"))
    command = [sys.executable, "-m", "megatron_sky", "report", run_dir, "--format", ending]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.fsencode(run_dir / f"report.{ending}") + b"\n"
    assert "caf?" in (run_dir / f"report.{ending}").read_text(encoding="utf-8")


def test_help_names_the_default_places(report):
    text = " ".join(" ".join(report("--help")).split())
    assert "report.html" in text and "comparison.html" in text
