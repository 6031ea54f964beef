"""The verbs and the tool, as a user calls them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from megatron_sky.cli.convert import app, release
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError, ConfigError, DataError
from tests.convert.test_native import assert_same_weights

ROOT = Path(__file__).parents[2]


def call(*words, fails: bool = False) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def test_there_and_back(native, tmp_path):
    assert "each compared as it was written" in call("to-hf", native("tp2"), tmp_path / "hf", "--file-size", "60k")
    call("from-hf", tmp_path / "hf", tmp_path / "back")
    assert_same_weights(open_source(native("tp2")), open_source(tmp_path / "back"))
    with pytest.raises(CheckpointError, match="is a Hugging Face folder, not a Megatron-LM"):
        call("from-megatron", tmp_path / "hf", tmp_path / "again")


def test_a_run_folder_means_its_latest_checkpoint(native, tmp_path):
    call("to-hf", native("one").parents[1], tmp_path / "hf")
    assert_same_weights(open_source(native("one")), open_source(tmp_path / "hf"))


@pytest.mark.slow
def test_check_tells_and_sets_the_exit_code(native, hf):
    """In a process of its own, as the command line is."""
    code = "from megatron_sky.cli.convert import app; app()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = ["check", str(native("tp2")), str(hf("tp2")), "--max-tokens", "60"]
    same = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert same.returncode == 0 and "they agree" in same.stdout and "60 tokens" in same.stdout, same.stderr
    words[2] = str(hf("llama3_rope"))  # of the same shape
    other = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert other.returncode == 4 and "DIFFER" in other.stdout, other.stderr


def test_release_wants_a_run_with_marks(native):
    main = typer.Typer()
    main.command()(release)
    result = CliRunner().invoke(main, [str(native("one").parents[1])])
    assert isinstance(result.exception, CheckpointError) and "release_marks" in str(result.exception)


@pytest.mark.parametrize("marks", ["500X", "1.5", ",", "256,x"])
def test_release_names_a_mark_that_is_none(marks, native):
    main = typer.Typer()
    main.command()(release)
    result = CliRunner().invoke(main, [str(native("one").parents[1]), "--marks", marks])
    assert isinstance(result.exception, ConfigError) and "--marks" in str(result.exception)


def test_release_takes_a_list_that_ends_in_a_comma(native, tmp_path):
    main = typer.Typer()
    main.command()(release)
    words = [str(native("one").parents[1]), "--marks", "512, ", "--out", str(tmp_path / "series")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0 and result.output.strip().endswith("one-512"), result.output


def test_check_names_a_text_that_cant_be_read(native, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("none.txt", "text.txt", "."):
        with pytest.raises(DataError, match="can't be read"):
            call("check", native("one"), native("one"), "--text", tmp_path / name)


def test_the_tool_converts_with_megatrons_flags(native, hf, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("convert_checkpoint", ROOT / "tools" / "convert_checkpoint.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    flags = ["--saver", "native", "--load-dir", hf("tp2"), "--save-dir", tmp_path / "native"]
    flags += ["--target-tensor-parallel-size", "4", "--make-vocab-size-divisible-by", "64"]
    tool.convert(tool.parse([str(flag) for flag in flags]))
    assert_same_weights(open_source(native("tp2")), open_source(tmp_path / "native"))
    tool.convert(tool.parse(["--saver", "hf", "--load-dir", str(native("tp2")), "--save-dir", str(tmp_path / "hf")]))
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (hf("tp2") / "model.safetensors").read_bytes()
