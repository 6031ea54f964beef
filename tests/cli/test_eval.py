"""The commands as a user types them: tables from published losses, several processes, and words for wrong input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_sky.cli.eval import app
from megatron_sky.errors import CheckpointError, ConfigError, DataError, RunError, SkyError
from megatron_sky.evaluate.results import read_leakage, read_loss
from tests.evaluate.test_leakage import TABLE_8
from tests.slow import slow_in_every_row

TABLE_8_FILE = Path(__file__).parents[2] / "examples/leakage/table_8.csv"


def run(*arguments):
    """The command's output; its error for the user is raised."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, SkyError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_the_reports_table_from_its_losses(tmp_path):
    words = run("leakage", "--published", TABLE_8_FILE, "--out", tmp_path / "out")
    aquila = next(line for line in words.splitlines() if line.startswith("| Aquila2-34B"))
    cells = [each.strip() for each in aquila.strip("|").split("|")]
    losses = ["0.78", "0.39", "1.29", "-0.51", "+0.39"]
    assert cells == ["Aquila2-34B", *losses, "test data leaked", "trained on the train split"]
    found = read_leakage(tmp_path / "out")
    assert [each.model.name for each in found.models] == list(TABLE_8)
    for each in found.models:
        plain = each.comparisons[0]
        test, train, reference, delta1, delta2, *_ = TABLE_8[each.model.name]
        assert (plain.test.value, plain.train.value, plain.reference.value) == (test, train, reference)
        assert plain.delta1.value == pytest.approx(delta1, abs=0.0101)
        assert plain.delta2.value == pytest.approx(delta2, abs=0.0101)
    assert found.models[0].model.kind == "published" and found.setting is None
    path = tmp_path / "published.csv"
    with pytest.raises(DataError, match="columns model, L_test, L_train, L_ref"):
        path.write_text("model,loss\na,1\n")
        run("leakage", "--published", path)
    with pytest.raises(DataError, match="a loss of b is no positive number"):
        path.write_text("model,L_test,L_train,L_ref\nb,nan,1,1\n")
        run("leakage", "--published", path)


def test_a_table_that_can_not_be_written_is_printed(tmp_path):
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["leakage", "--published", str(TABLE_8_FILE), "--out", str(tmp_path / "file/out")])
    assert isinstance(done.exception, RunError) and "can't be written" in str(done.exception)
    assert "| Aquila2-34B" in done.stdout


@pytest.mark.slow
def test_a_failed_model_ends_the_command_with_an_error_after_the_table(hf, corpus, tmp_path):
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    shutil.copytree(hf("tp2"), tmp_path / "broken")
    tensors = {name: each.fill_(float("nan")) for name, each in load_file(hf("tp2") / "model.safetensors").items()}
    save_file(tensors, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-m", "megatron_sky", "eval", "loss", str(tmp_path / "broken"), f"good={hf('tp2')}"]
    command += ["--data", f"en={corpus / 'text/test/en_web.jsonl'}", "--max-documents", "6", "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == CheckpointError.exit_code, done.stderr
    assert "| good " in done.stdout and "## Failed" in done.stdout
    assert "6 of 6 documents is nan" in done.stderr and "fix:" in done.stderr and "Traceback" not in done.stderr


def test_wrong_input_is_told_in_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(CheckpointError, match="is no folder"):
        run("loss", tmp_path / "none", "--data", f"a={tmp_path / 'a.jsonl'}")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        run("loss", tmp_path, "--data", f"a={tmp_path / 'a.jsonl'}")
    with pytest.raises(ConfigError, match="--begin"):
        run("loss", tmp_path, "--data", f"a={tmp_path / 'a.jsonl'}", "--begin", "sos")
    with pytest.raises(ConfigError) as caught:
        run("leakage")
    assert [each.where for each in caught.value.problems] == ["CHECKPOINT", "--train", "--test", "--reference"]
    with pytest.raises(ConfigError, match="must be one of gsm8k-like"):
        run("leakage", tmp_path, "--train", "a", "--test", "b", "--generate-reference", "poems")


def test_what_a_checkpoint_can_not_do_is_told_before_it_is_loaded(native, tmp_path):
    pytest.importorskip("transformers")
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "x"}\n')
    checkpoint = native("tp2")
    with pytest.raises(ConfigError, match="made for"):
        run("loss", checkpoint, "--data", f"a={data}", "--context", 64)
    with pytest.raises(DataError, match=r"tokenizer .*none\.model can't be read"):
        run("loss", checkpoint, "--data", f"a={data}", "--reference-tokenizer", tmp_path / "none.model")
    with pytest.raises(ConfigError, match="two of them have this name"):
        run("loss", checkpoint, checkpoint, "--data", f"a={data}")
    with pytest.raises(ConfigError, match=r"num_attention_heads|tp_size"):
        run("loss", checkpoint, "--data", f"a={data}", "--tp-size", 3)


@pytest.mark.slow
def test_several_processes_print_one_table(native, corpus, tmp_path):
    command = [sys.executable, "-m", "megatron_sky", "eval", "loss", f"m={native('tp2')}", "--max-documents", "6"]
    command += ["--data", f"en={corpus / 'text/test/en_web.jsonl'}", "--nproc", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## Perplexity") == 1
    assert read_loss(tmp_path).models[0].average.documents == 6
    assert len((tmp_path / "documents/m.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "loss.json").read_text())["kind"] == "loss"


@slow_in_every_row
def test_the_harness_says_nothing_on_the_screen(native, tmp_path):
    """In two processes, which each have a harness; from a folder that is no git repository."""
    pytest.importorskip("lm_eval")
    examples = Path(__file__).parents[2] / "examples/tasks"
    (tmp_path / "examples/tasks").mkdir(parents=True)
    for path in examples.iterdir():
        shutil.copy(path, tmp_path / "examples/tasks")
    command = [sys.executable, "-m", "megatron_sky", "eval", "tasks", f"m={native('tp2')}", "--nproc", "2"]
    command += ["--tasks", "sums_choice,sums_text", "--include-path", "examples/tasks", "--limit", "2"]
    command += ["--num-fewshot", "1"]
    environment = os.environ | {"PYTHONPATH": str(examples.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| task") and done.stdout.count("sums_choice") >= 1
    assert all(line.startswith("|") for line in done.stdout.strip().splitlines()), done.stdout
    for noise in ("fatal", "git", "it/s]", "%|", "bootstrapping"):
        assert noise not in done.stderr, done.stderr
