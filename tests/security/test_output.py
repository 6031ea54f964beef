"""What files hold reaches a terminal written out, and output that nobody takes is one line, for every verb."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.slurm import queue
from tests.security.material import EVIL, RAW, change_json, copy, make_evil

ROOT = Path(__file__).parents[2]
CHECKPOINT = "run/checkpoints/step_0000003"


@pytest.fixture
def evil(tmp_path):
    """A folder of an evil name, of files with evil names in them."""
    folder = copy(tmp_path / EVIL)
    make_evil(folder)
    return folder


@pytest.fixture
def plain(tmp_path):
    return copy(tmp_path / "plain")


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    """The program, in a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "timeout": 300} | options
    return subprocess.run([sys.executable, "-m", "megatron_sky", *map(os.fspath, arguments)], check=False, **options)


def assert_clean(text: str) -> None:
    assert "\\x1b" in text, text  # the evil name was printed
    assert not (found := RAW.search(text)), f"{found.group()!r} in {text[max(0, found.start() - 99) :][:200]!r}"


LOOKING = {
    "inspect": ("data", "inspect", "{0}/tokens/en", "--tokenizer", "{0}/tokenizer.model", "--document", "0"),
    "verify": ("data", "verify", "{0}/tokens/en"),
    "merge": ("data", "merge", "{0}/tokens/en", "--out", "{0}/merged"),
    "tokenize": ("data", "tokenize", "{0}", "--out", "{0}/new", "--tokenizer", "{0}/tokenizer.model", "--workers", "1"),
    "key": (
        "data",
        "tokenize",
        "{0}/evil.jsonl",
        "--out",
        "{0}/n",
        "--tokenizer",
        "{0}/tokenizer.model",
        "--key",
        EVIL,
    ),
    "mix": ("data", "mix", "{0}/recipe.yaml", "data.train.0.path={0}"),
    "list": ("checkpoint", "list", "{0}/run"),
    "checkpoint_verify": ("checkpoint", "verify", "{0}/run"),
    "diff": ("checkpoint", "diff", "{0}/run", "{0}/nowhere"),
    "prune": ("checkpoint", "prune", "{0}/run", "--keep-last", "1"),
    "to_hf": ("convert", "to-hf", "{0}/run", "{0}/hf"),
    "from_hf": ("convert", "from-hf", "{0}/run", "{0}/native"),
    "from_megatron": ("convert", "from-megatron", "{0}/run", "{0}/native"),
    "release": ("release", "{0}/run", "--marks", "100"),
    "report": ("report", "{0}/run"),
    "check": ("tokenizer", "check", "{0}/nowhere.model"),
    "tokenizer": ("tokenizer", "build", "{0}/nowhere.jsonl", "--out", "{0}/t.model", "--vocab-size", "400"),
    "train": ("train", "{0}/recipe.yaml", "--dry-run", "train.run_dir={0}"),
    "submit": ("slurm", "submit", "{0}/recipe.yaml", "--print", "--name", EVIL),
    "status": ("slurm", "status", "{0}/run"),
    "from_args": ("from-args", "{0}/launch.sh"),
    "from_nemo": ("from-nemo", "{0}/nowhere.yaml"),
    "usage": ("data", "mix", "--{0}"),
}


NAMELESS = ("prune",)
"""Those that have nothing to say of the folder."""


@pytest.mark.parametrize("name", LOOKING)
def test_a_verb_shows_what_it_read(name, sky, evil, monkeypatch, tmp_path):
    (evil / "launch.sh").write_text(f"torchrun pretrain_gpt.py --num-layers 2 --{EVIL} 3 --save '{EVIL}'\n")
    monkeypatch.setattr(queue, "call", lambda *_: f"7|PENDING|{EVIL}|1:00|{EVIL}\n")
    monkeypatch.chdir(tmp_path)
    _, out, err = sky(*(word.format(evil) for word in LOOKING[name]))
    assert not (found := RAW.search(out + err)), found
    assert "Traceback" not in err
    assert "\\x1b" in out + err or name in NAMELESS, out + err  # the evil name was printed


def test_an_unlisted_file_and_an_unknown_column(sky, evil):
    (evil / CHECKPOINT / EVIL).write_text("x")
    assert_clean(sky("checkpoint", "verify", evil / CHECKPOINT)[1])
    change_json(
        evil / CHECKPOINT / "manifest.json", lambda m: m["files"].update({EVIL + "2": {"size": 1, "xxh3": "a"}})
    )
    assert_clean(sky("checkpoint", "verify", evil / CHECKPOINT)[1])
    import pyarrow as arrow
    from pyarrow import parquet

    parquet.write_table(arrow.table({EVIL: ["a"]}), evil / "rows.parquet")
    words = ("--out", evil / "rows", "--tokenizer", evil / "tokenizer.model")
    assert_clean(sky("data", "tokenize", evil / "rows.parquet", *words)[2])


def test_names_of_tensors(sky, plain):
    """A folder of Hugging Face's form, and a checkpoint's other weights."""
    sky("convert", "to-hf", plain / "run", plain / "hf")
    file = plain / "hf/model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if "norm" in name)
    header |= {EVIL: header[name] | {"data_offsets": [header[name]["data_offsets"][1]] * 2, "shape": [0]}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    code, _, err = sky("convert", "from-hf", plain / "hf", plain / "back")
    assert code == 4
    assert_clean(err)


def test_tokens_of_a_vocabulary(sky, tmp_path):
    from tokenizers import Tokenizer, models

    vocab = {EVIL: 0, "a": 1, "<unk>": 2, "</s>": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens([EVIL])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    code, out, err = sky("tokenizer", "check", tmp_path / "tokenizer.json")
    assert code == 3 and not RAW.search(out + err)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "{0}/run", EVIL),
        pytest.param(("eval", "loss", "{0}/run", "--data", EVIL + "={0}/evil.jsonl"), marks=pytest.mark.slow),
        pytest.param(("convert", "check", "{0}/run", "{0}/run", "--text", "{0}/evil.jsonl"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_model_says_what_it_read(words, evil):
    done = command(*(word.format(evil) for word in words))
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert_clean((done.stdout + done.stderr).decode())


def test_a_terminal_has_our_colours_and_no_others(evil):
    """The screen of a terminal: rich's own codes stay."""
    code = (
        "from megatron_sky.terminal import shown_output\nfrom megatron_sky.log import *\n"
        f"with shown_output():\n    setup_logging(0, 1, None)\n    get_logger('x').warning({EVIL!r})\n"
    )
    main, side = os.openpty()
    job = subprocess.Popen(
        [sys.executable, "-c", code], stderr=side, cwd=ROOT, env=os.environ | {"TERM": "xterm", "FORCE_COLOR": "1"}
    )
    assert job.wait(60) == 0
    shown = os.read(main, 1 << 16).decode()
    os.close(main), os.close(side)
    assert "\x1b[33m" in shown and "WARNING e\\x1b[31mv\\r\\x9b2J\\u202el\\u200f\\x07\x1b[0m" in shown, ascii(shown)


def test_json_stays_json(sky, tmp_path):
    _, out, _ = sky("doctor", "--json", "--run-dir", tmp_path / EVIL, "--ranks", "1", "--disk-mib", "1")
    assert not RAW.search(out) and json.loads(out)
    assert json.loads(sky("schema")[1])["title"] == "Config"


VERBS = {
    "help": ("--help",),
    "version": ("--version",),
    "schema": ("schema",),
    "inspect": ("data", "inspect", "{0}/tokens/en"),
    "list": ("checkpoint", "list", "{0}/run"),
    "checkpoint_verify": ("checkpoint", "verify", "{0}/run"),
    "diff": ("checkpoint", "diff", "{0}/run", "{0}/run"),
    "report": ("report", "{0}/run"),
    "from_args": ("from-args", "--num-layers 2"),
    "check": ("tokenizer", "check", "{0}/tokenizer.model"),
    "doctor": ("doctor", "--ranks", "1", "--disk-mib", "1", "--run-dir", "{0}/run"),
    "dry_run": ("train", "recipe.yaml", "--dry-run"),
    "mix": ("data", "mix", "recipe.yaml"),
    "generate": ("generate", "{0}/run", "a", "--max-tokens", "1"),
    "loss": ("eval", "loss", "{0}/run", "--data", "{0}/text.jsonl", "--max-documents", "1"),
}
QUICK = ("help", "inspect")


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in VERBS]
)
@pytest.mark.parametrize("fault", ["full", "no_reader", "closed"])
def test_output_that_nobody_takes(fault, name, plain):
    words = [word.format(plain) for word in VERBS[name]]
    options = {"cwd": plain, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    if fault == "closed":
        done = command(*words, stdout=None, preexec_fn=lambda: os.close(1), **options)
    elif fault == "full":
        with open("/dev/full", "wb") as full:
            done = command(*words, stdout=full, **options)
    else:
        reads, writes = os.pipe()
        os.close(reads)
        done = command(*words, stdout=writes, **options)
        os.close(writes)
    told = done.stderr.decode()
    assert done.returncode == 74, told
    assert told.count("standard output can't be written") == 1
    assert "Traceback" not in told and "Exception ignored" not in told


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in VERBS]
)
@pytest.mark.parametrize(
    "setting", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_chinese_names_where_the_terminal_has_ascii(setting, name, plain):
    folder = plain.rename(plain.with_name("数据 – é"))
    words = [word.format(folder) for word in VERBS[name]]
    done = command(*words, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | setting)
    assert done.returncode == 0 or name in ("check", "doctor"), done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr and b"Error" not in done.stderr, done.stderr.decode(errors="replace")


def test_a_name_that_is_no_utf_8(plain):
    folder = os.fsencode(plain.parent) + b"/na\xff\x9bme"
    os.rename(plain, folder)
    for words in (("report", folder + b"/run"), ("checkpoint", "list", folder + b"/run")):  # as it is, but for 0x9b
        done = subprocess.run(
            [sys.executable, "-m", "megatron_sky", *words], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert b"na\xff\\udc9bme" in done.stdout
