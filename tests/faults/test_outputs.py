"""Verbs that are asked to end while they write: nothing under a final name that looks whole, and no temporary file."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.record import RECORDED

ROOT = Path(__file__).parents[2]
# Asks this process to end before the first file gets its name.
ASK = """
import os, signal, sys
from megatron_sky.__main__ import main

def ask(event, arguments, asked=[]):
    if event == "os.rename" and not asked and str(arguments[1]).startswith({out!r}):
        asked.append(True)
        signal.raise_signal({number})

sys.addaudithook(ask)
main()
"""


def ended(out: Path, number: int, *arguments: object) -> subprocess.CompletedProcess:
    code = ASK.format(out=str(out), number=number)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def verb(corpus, tmp_path):
    """`verb("merge")`: the arguments of a verb that writes into the folder `tmp_path / "out"`."""
    out = tmp_path / "out"
    out.mkdir()
    tokens, text = corpus / "tokens/train", corpus / "text"
    files = sorted(str(file) for file in text.rglob("*.jsonl"))
    verbs = {
        "merge": ["data", "merge", tokens / "en_web", tokens / "zh_web", "--out", out / "all"],
        "build": ["tokenizer", "build", *files, "--out", out / "tokenizer.model", "--vocab-size", 600],
        "report": ["report", RECORDED / "run", "--out", out / "report.html"],
        "to-hf": ["convert", "to-hf", RECORDED / "run", out / "hf"],
        "tokenize": ["data", "tokenize", files[0], "--tokenizer", corpus / "tokenizer.model", "--out", out / "pair"],
    }
    return lambda name: verbs[name]


@pytest.mark.parametrize(("number", "name"), [(15, "SIGTERM"), (1, "SIGHUP"), (2, "interrupted")])
@pytest.mark.parametrize("which", ["merge", "build", "report"])
def test_a_verb_that_is_asked_to_end_takes_away_what_it_was_writing(which, number, name, verb, tmp_path):
    done = ended(tmp_path / "out", number, *verb(which))
    assert done.returncode == 128 + number, done.stderr
    assert name in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_conversion_keeps_what_it_can_go_on_from_under_another_name(verb, tmp_path):
    done = ended(tmp_path / "out", 15, *verb("to-hf"))
    assert done.returncode == 143, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hf.partial"]


def test_tokenize_keeps_what_it_can_go_on_from(verb, tmp_path):
    done = ended(tmp_path / "out", 15, *verb("tokenize"))
    assert done.returncode == 143, done.stderr
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert "pair.progress.json" not in names or "pair.idx" not in names
    again = subprocess.run(
        [sys.executable, "-m", "megatron_sky", *map(str, verb("tokenize"))], cwd=ROOT, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["pair.bin", "pair.idx", "pair.meta.json"]
