"""What a resume does with what was changed since."""

import json
import shutil

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.config import dump_config
from tests.faults import faults
from tests.faults.test_faults import events, expected, hurt, log_of, losses, run_dir, unhurt  # noqa: F401 (fixtures)


@pytest.mark.parametrize(
    "edit",
    ["optimizer.adam_beta1=0.5", "optimizer.adam_beta2=0.5", "optimizer.adam_eps=0.1", "optimizer.clip_grad=0.01"],
)
def test_the_optimizers_numbers_are_applied_on_resume(edit, hurt, run_dir, expected):  # noqa: F811
    assert hurt("train.max_steps=8").code == 0
    assert hurt(edit).code == 0
    assert losses(run_dir)[:9] == expected[:9]
    assert losses(run_dir)[9] != expected[9]


@pytest.fixture
def own_data(corpus, tmp_path):
    """Overrides by which a run reads files of its own, in the folder `tmp_path / "data"`."""
    (tmp_path / "data").mkdir()
    for file in (corpus / "tokens/train").iterdir():
        shutil.copy(file, tmp_path / "data")
    return [f"data.train.{i}.path={tmp_path}/data/{name}" for i, name in enumerate(("en_web", "zh_web"))]


def test_data_that_was_swapped_is_refused_unless_allowed(own_data, hurt, run_dir, tmp_path):  # noqa: F811
    assert hurt(*own_data, "train.max_steps=8").code == 0
    path = tmp_path / "data/en_web.bin"
    before = path.read_bytes()
    path.write_bytes(before[len(before) // 4 * 2 :] + before[: len(before) // 4 * 2])  # the same ids, the same size
    ended = hurt(*own_data)
    assert ended.code == 3 and "en_web" in ended.message and "data.allow_changed_files=true" in ended.message
    assert hurt(*own_data, "data.allow_changed_files=true").code == 0
    assert "hold other tokens than when step_0000008 was saved" in (run_dir / "logs/rank_00000.log").read_text()


def test_a_checkpoint_without_fingerprints_is_gone_on_with(hurt, run_dir, expected):  # noqa: F811
    assert hurt("train.max_steps=8").code == 0
    folder = run_dir / "checkpoints/step_0000008"
    state = json.loads((folder / "train_state.json").read_text())
    assert set(state.pop("sources")) == {"en_web", "zh_web"}
    (folder / "train_state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    records = store.hash_files(folder, store.files_of(folder))
    manifest["files"] = {name: record.to_dict() for name, record in records.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert hurt().code == 0
    assert losses(run_dir) == expected


@pytest.mark.parametrize("also", ["", "metrics.jsonl"])
def test_deleted_checkpoints_are_missed(also, hurt, run_dir, expected, recipe, sky, tmp_path):  # noqa: F811
    for steps in (4, 8):
        assert hurt(f"train.max_steps={steps}").code == 0
    shutil.rmtree(run_dir / "checkpoints")
    if also:
        (run_dir / also).unlink()
    ended = hurt()
    assert ended.code == 4 and "checkpoint.start_over=true" in ended.message
    (tmp_path / "again.yaml").write_text(dump_config(recipe()))
    for more in (["--dry-run"], ["--nproc", "2"]):  # told before a rank is started
        code, _, err = sky("train", tmp_path / "again.yaml", *more)
        assert code == 4 and "holds no checkpoint, but this run had one of step" in err
    assert sky("train", tmp_path / "again.yaml", "checkpoint.start_over=true", "--dry-run")[0] == 0
    assert hurt("checkpoint.start_over=true", "train.max_steps=3", "checkpoint.interval=null").code == 0
    shutil.rmtree(run_dir / "checkpoints/step_0000003")
    assert hurt("checkpoint.start_over=true").code == 0
    assert losses(run_dir) == expected


@pytest.fixture(params=["tokenizer.model", "tokenizer.json with settings"])
def own_tokenizer(request, corpus, own_data, tmp_path):
    """Overrides by which a run has a tokenizer of its own in the folder `tmp_path / "tokenizer"`."""
    from megatron_sky.tokenizer import to_huggingface

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    if request.param == "tokenizer.model":
        shutil.copy(corpus / "tokenizer.model", folder)
        return [f"tokenizer.path={folder / 'tokenizer.model'}"]
    to_huggingface.write(corpus / "tokenizer.model", folder, adds_begin=True)
    (folder / "tokenizer.model").unlink()
    for file in (tmp_path / "data").glob("*.json"):
        file.unlink()  # which names the tokenizer that made the data
    return [f"tokenizer.path={folder}", "validation.sets=[]", *own_data]


@pytest.mark.parametrize("fault", [faults.deleted_tokenizer, faults.replaced_tokenizer])
def test_a_tokenizer_is_held_from_the_start(fault, own_tokenizer, hurt, run_dir, tmp_path):  # noqa: F811
    folder = tmp_path / "tokenizer"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert hurt(*own_tokenizer, fault=fault).code == 0
    after = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}
    assert after.keys() in (before.keys(), set()) and after != before
    for _, checkpoint in store.list_checkpoints(run_dir):
        assert {name: (checkpoint / name).read_bytes() for name in before} == before
    assert events(run_dir, "checkpoint_failed") == []


def test_another_tokenizer_on_resume_is_told(own_data, corpus, hurt, run_dir, tmp_path):  # noqa: F811
    for file in (tmp_path / "data").glob("*.json"):
        file.unlink()
    path = tmp_path / "tokenizer.model"
    shutil.copy(corpus / "tokenizer.model", path)
    overrides = [*own_data, f"tokenizer.path={path}", "validation.sets=[]"]
    assert hurt(*overrides, "train.max_steps=4").code == 0
    assert hurt(*overrides, "train.max_steps=5").code == 0
    told = "tokenizer.path: tokenizer.model is not what step_0000005 holds"
    assert "tokenizer.path:" not in log_of(run_dir)
    path.write_bytes(path.read_bytes() + b"\x9a\x06\x00")  # a field that sentencepiece does not know
    assert hurt(*overrides, "train.max_steps=6").code == 0
    assert told in log_of(run_dir)
