"""What a small file claims of sizes is compared with what is there, before anything of that size is made."""

import json
import os
import shutil
from pathlib import Path

import pytest

from megatron_sky.config import load_config
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError, ConfigError, DataError
from megatron_sky.slurm import queue
from megatron_sky.tokenizer.kinds import load_tokenizer
from tests.security import kinds
from tests.security.material import change_json


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    pytest.importorskip("tokenizers")
    pytest.importorskip("pyarrow")
    pytest.importorskip("zstandard")
    return kinds.make(tmp_path_factory.mktemp("claims") / "files")


@pytest.fixture
def folder(files, tmp_path) -> Path:
    return shutil.copytree(files, tmp_path / "files")


HUGE = [10**9, 10**30, 2**31, 2**63]
SHAPE = ["num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"]


@pytest.mark.parametrize("field", [*SHAPE, "vocab_size", "seq_length", "vocab_multiple"])
@pytest.mark.parametrize("value", HUGE)
def test_a_recipe_of_a_model_that_nobody_has(value, field, files):
    with pytest.raises(ConfigError, match=rf"model\.{field} .*should be|model\.{field} .*exceeded"):
        load_config([files / "recipe.yaml"], [f"model.{field}={value}"])


@pytest.mark.parametrize("count", ["1e999999999", "1e400", "9" * 4000, "1e30", "10000000000T"])
def test_a_count_without_end(count, files):
    with pytest.raises(ConfigError, match=r"train\.tokens"):
        load_config([files / "recipe.yaml"], [f"train.tokens={count}"])


def load_hf(info, folder: str) -> str:
    """What running a Hugging Face folder ends in. Run on a rank."""
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.inference.hf_model import load_folder

    with open_context(ParallelConfig(distributed_optimizer=False), info) as context:
        try:
            load_folder(Path(folder), context.device)
        except CheckpointError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("value", [10**6, *HUGE, -1, "many", [3], True])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_hugging_face_folder_that_claims_more_than_it_has(key, value, folder, ranks):
    change_json(folder / "hf/config.json", lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match="hf"):
        open_source(folder / "hf")
    (said,) = ranks(1, load_hf, str(folder / "hf"))
    assert "parameters; the weight files" in said or "must be a whole number" in said


@pytest.mark.parametrize("value", [10**6, *HUGE, -1, "many"])
@pytest.mark.parametrize("name", ["num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"])
def test_megatron_args_that_claim_more_than_is_there(name, value, folder):
    import torch

    path = folder / "megatron/iter_0000003/mp_rank_00/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    setattr(content["args"], name, value)
    torch.save(content, path)
    with pytest.raises(CheckpointError):
        open_source(folder / "megatron", vocab_size=560)


@pytest.mark.parametrize("names", [["mp_rank_99999999"], ["mp_rank_00_99999999"], ["mp_rank_01_001", "mp_rank_07"]])
def test_ranks_without_end(names, folder):
    for name in names:
        (folder / "megatron/iter_0000003" / name).mkdir()
    with pytest.raises(CheckpointError, match="but none for"):
        open_source(folder / "megatron", vocab_size=560)


def test_a_rank_below_zero_is_no_rank(folder):
    (folder / "megatron/iter_0000003/mp_rank_-1").mkdir()
    assert open_source(folder / "megatron", vocab_size=560).weights


@pytest.mark.parametrize("latest", ["9" * 5000, "9" * 200, "-1", "../../x", "3\n3", "\u0663", "", "1e3"])
def test_an_iteration_without_end(latest, folder):
    (folder / "megatron/latest_checkpointed_iteration.txt").write_text(latest, encoding="utf-8")
    with pytest.raises(CheckpointError):
        open_source(folder / "megatron", vocab_size=560)


@pytest.mark.parametrize("token_id", [2**24, 2**31, 2**32 - 1, 2**63, -1])
def test_a_token_id_without_end(token_id, folder, sky):
    """Neither as a vocabulary's own nor as an added token."""
    path = folder / "json/tokenizer.json"
    change_json(path, lambda content: content["model"]["vocab"].update(c=token_id))
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(path)
    code, _, err = sky("tokenizer", "check", path)
    assert code == 3 and "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 100, b"{", b"{}", b"[]", b"\x0a\x02\x0a\x00"])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "t.tiktoken"])
def test_a_tokenizer_of_nothing(name, content, tmp_path, sky):
    if name.endswith("tiktoken"):
        pytest.importorskip("gigatoken")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        load_tokenizer(tmp_path / name)
    code, _, err = sky("tokenizer", "check", tmp_path / name)
    assert code == 3 and "Traceback" not in err


def endless(kind: str, path: Path) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    return path


@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/full", "pipe", "folder"])
@pytest.mark.parametrize(
    "words",
    [
        ("tokenizer", "check", "{0}.model"),
        ("tokenizer", "check", "{0}.json"),
        ("tokenizer", "check", "{0}.tiktoken"),
        ("train", "{0}.yaml"),
        ("data", "inspect", "{0}"),
        ("data", "verify", "{0}"),
        ("data", "tokenize", "{0}.jsonl", "--out", "{1}/out", "--tokenizer", "{1}/tokenizer.model"),
        ("from-args", "{0}.sh"),
        ("convert", "to-hf", "{1}/run", "{1}/out", "--recipe", "{0}.yaml", "--tokenizer", "{0}.model"),
        ("eval", "leakage", "--published", "{0}.csv"),
        ("checkpoint", "list", "{0}"),
        ("slurm", "submit", "{1}/recipe.yaml", "--print", "--site", "{0}.yaml"),
    ],
    ids=lambda words: "_".join(words[:3]),
)
def test_what_is_no_file(words, kind, folder, tmp_path, sky):
    """It is told, and neither waited for nor read without an end."""
    for ending in ("", ".model", ".json", ".tiktoken", ".yaml", ".bin", ".idx", ".jsonl", ".sh", ".csv"):
        endless(kind, tmp_path / f"strange{ending}")
    code, _, err = sky(*(word.format(tmp_path / "strange", folder) for word in words))
    assert code in (2, 3, 4, 5) and "Traceback" not in err and "strange" in err, err


JOBS = [None, 3, "x", {}, [None], ["x"], [[]], [{}], [{"job_id": "7"}], [{"job_id": 7, "kind": "t", "name": "n"}],
        [{"job_id": "7", "kind": "train", "name": None, "script": "s"}], {"jobs": []}]  # fmt: skip
ATTEMPTS = [None, 3, "x", [], {}, {"attempts": None}, {"attempts": {}}, {"attempts": [None, 3]},
            {"attempts": [{"slurm": None}]}, {"attempts": [{"slurm": {"job_id": [], "log": {}}}]},
            {"attempts": [{"slurm": {"job_id": "7"}, "ended": {}}]},
            {"attempts": [{"ended": "x", "step_before": "y"}]}]  # fmt: skip


@pytest.mark.parametrize("content", [*(json.dumps(each) for each in JOBS), "", "{", "[" * 100_000, "\0", '"\ud800"'])
def test_jobs_of_another_shape(content, folder, sky, monkeypatch):
    monkeypatch.setattr(queue, "call", lambda *_: "")
    (folder / "run/slurm/jobs.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    code, _, err = sky("slurm", "status", folder / "run")
    assert code == 5 and "jobs.json" in err and "fix:" in err and "Traceback" not in err


@pytest.mark.parametrize("content", [*(json.dumps(each) for each in ATTEMPTS), "", "{", "[" * 100_000, "\0", "nul"])
def test_attempts_of_another_shape(content, folder, sky, monkeypatch):
    """What can't be read of them is told; the rest of the run is shown."""
    monkeypatch.setattr(queue, "call", lambda *_: "7|PENDING|Priority|1:00|n1\n")
    (folder / "run/run.json").write_text(content)
    code, out, err = sky("slurm", "status", folder / "run")
    assert code == 0 and "step" in out and "job 7" in out and "Traceback" not in err


def test_squeue_of_another_form(folder, sky, monkeypatch):
    monkeypatch.setattr(queue, "call", lambda *_: "slurm_load_jobs error: x\n")
    code, _, err = sky("slurm", "status", folder / "run")
    assert code == 5 and "is not of the form" in err


def test_a_tensor_name_without_end(folder):
    change_json(
        folder / "hf/model.safetensors.index.json",
        lambda index: index["weight_map"].update({"a": "a" * 5000, "b": "\ud800", "c": "../x"}),
    )
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        open_source(folder / "hf")
