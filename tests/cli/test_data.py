"""The verbs of `megatron-sky data` and `megatron-sky tokenizer`, as a user calls them."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from megatron_sky.cli import data as cli_data
from megatron_sky.cli import tokenizer as cli_tokenizer
from megatron_sky.data.tokens.meta import read_meta
from megatron_sky.errors import DataError
from tests.data.helpers import write_pair


def call(module, *words, code=0):
    done = CliRunner().invoke(module.app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.slow
def test_from_text_to_a_proved_pair(text_corpus, tmp_path):
    files = sorted(text_corpus.files["train"].values())
    model, out = tmp_path / "t.model", tmp_path / "tokens" / "train"
    assert "700 tokens" in call(cli_tokenizer, "build", *files, "--out", model, "--vocab-size", 700)
    with pytest.raises(DataError, match="exists already"):
        call(cli_tokenizer, "build", *files, "--out", model, "--vocab-size", 800)
    checked = call(cli_tokenizer, "check", model, "--text", files[0])
    assert "FAIL" not in checked and "characters per token" in checked
    bigger = tmp_path / "bigger.model"
    words = ["extend", *files, "--base", model, "--out", bigger, "--vocab-size", 1100, "--characters", 300]
    assert "400 of them new" in call(cli_tokenizer, *words)
    told = call(cli_data, "tokenize", *files, "--out", out, "--tokenizer", bigger, "--workers", 1)
    assert "0 empty + 0 rejected" in told
    assert "agrees with its meta file" in call(cli_data, "verify", out, "--tokenizer", bigger)
    seen = call(
        cli_data, "inspect", f"{out}.bin", "--tokenizer", bigger, "--document", 0, "--picture", tmp_path / "a.png"
    )
    assert "--- document 0" in seen and "zh:" in seen and (tmp_path / "a.png").exists()


def test_shards_are_merged(text_corpus, tmp_path):
    path, model = text_corpus.files["test"]["stem"], text_corpus.tokenizer_path
    for index in range(2):
        words = ["tokenize", path, "--out", tmp_path / "s", "--tokenizer", model, "--shard", f"{index}/2"]
        call(cli_data, *words, "--workers", 1)
    call(cli_data, "merge", tmp_path, "--out", tmp_path / "whole")
    assert "whole;" in call(cli_data, "verify", tmp_path / "whole")


def test_a_pair_of_another_tool_is_adopted(text_corpus, tmp_path):
    prefix = write_pair(tmp_path / "a", [[5, 2], [6, 7, 2]])
    assert "has no meta file" in call(cli_data, "verify", prefix)
    call(cli_data, "verify", prefix, "--tokenizer", text_corpus.tokenizer_path, "--write-meta")
    assert read_meta(prefix).append_eod


def test_mix_tells_what_a_recipe_gives(text_corpus, tmp_path):
    write_pair(tmp_path / "a", [list(range(1, 1602))])
    recipe = {
        "model": {"preset": "tiny", "vocab_size": 2000, "seq_length": 16},
        "data": {"train": [{"name": "a", "path": str(tmp_path / "a")}]},
        "schedule": {"lr": 0.001},
        "train": {"run_dir": "run", "tokens": 3200, "global_batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert "2.000" in call(cli_data, "mix", tmp_path / "recipe.yaml")
    assert "10.00 times" in call(cli_data, "mix", tmp_path / "recipe.yaml", "train.tokens=16000", code=2)


def test_wrong_words_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    words = ["tokenize", tmp_path / "a.jsonl", "--out", tmp_path / "o", "--tokenizer", tmp_path / "no.model"]
    call(cli_data, *words, "--shard", "4/4", code=2)
    call(cli_data, *words, "--encoder", "quick", code=2)
    with pytest.raises(DataError, match=r"no\.model can't be read"):
        call(cli_data, *words)


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from megatron_sky.cli import data, tokenizer; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic', 'sentencepiece')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_conversations_from_file_to_screen(text_corpus, tmp_path):
    model, out, path = tmp_path / "chat.model", tmp_path / "chat", tmp_path / "chat.jsonl"
    path.write_text('{"instruction": "1+1?", "output": "二"}\n{"instruction": "?"}\n', encoding="utf-8")
    told = call(cli_tokenizer, "chat", text_corpus.tokenizer_path, "--out", model)
    assert "603 tokens, 3 behind the last; [USER] 600, [BOT] 601, [SEP] 602" in told
    words = ["--out", out, "--tokenizer", model, "--seq-length", 64]
    told = call(cli_data, "chat", path, *words, "--template", "skywork")
    assert "2 read = 1 written + 0 empty + 1 rejected" in told and "empty_answer 1 (the assistant says nothing" in told
    assert "1 rows of 64" in call(cli_data, "verify", out, "--tokenizer", model)
    seen = call(cli_data, "inspect", out, "--tokenizer", model, "--document", 0)
    assert "context   </s> <s> ▁ [USER]" in seen and "[SEP]\npadding" in seen and "template skywork" in seen
    with pytest.raises(DataError, match="packed samples with a mask can't be joined"):
        call(cli_data, "merge", out, "--out", tmp_path / "b")
