"""Fine-tuning is the same in every layout, whole or by adapters, and starts from what it says."""

import json
from pathlib import Path

import pytest

from megatron_sky.checkpoint.description import read_description
from megatron_sky.checkpoint.reader.index import METADATA, read_index
from megatron_sky.config import dump_config
from megatron_sky.monitor.metrics import read_metrics
from tests.slow import slow_except
from tests.trainer.finetuning import LORA, STEPS, settings, train_base, write_samples
from tests.trainer.test_parity import run_training

LAYOUTS = {
    "tp2_sp": (2, ["parallel.tp_size=2", "parallel.sequence_parallel=true"]),
    "tp2": (2, ["parallel.tp_size=2"]),
    "pp2": (2, ["parallel.pp_size=2"]),
    "dp2_zero1": (2, ["parallel.distributed_optimizer=true"]),
}
WAYS = {"whole": [], "lora": LORA}


@pytest.fixture(scope="module")
def samples(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder, corpus / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict:
    """Runs that several tests look at, by name: (folder, numbers); and the base's folder."""
    return {"folder": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def base(kept, ranks, recipe) -> Path:
    folder = kept["folder"] / "base"
    if not folder.exists():
        train_base(ranks, recipe, folder)
    return folder


@pytest.fixture
def tuned(kept, ranks, recipe, samples, base):
    """`tuned(name, *overrides, world_size=1)`: the folder and the numbers of a run, trained once for all tests."""

    def run(name: str, *overrides: str, world_size: int = 1) -> tuple[Path, list]:
        folder = kept["folder"] / name
        if name not in kept:
            config = recipe(*settings(samples, base, folder), *overrides)
            kept[name] = ranks(world_size, run_training, dump_config(config))[0]
        return folder, kept[name]

    return run


CASES = [f"{way} {layout}" for layout in LAYOUTS for way in WAYS]


@pytest.mark.parametrize("case", slow_except(CASES, "lora tp2_sp", "lora pp2", "whole dp2_zero1"))
def test_layouts_are_equal(case, tuned):
    way, layout = case.split()
    world_size, overrides = LAYOUTS[layout]
    _, one = tuned(way, *WAYS[way])
    _, got = tuned(f"{way}_{layout}", *WAYS[way], *overrides, world_size=world_size)
    assert len(got) == len(one) == STEPS + 1
    for (loss, norm), (loss_one, norm_one) in zip(got, one, strict=True):
        assert abs(loss - loss_one) <= 1e-5
        assert abs(norm - norm_one) <= 1e-4 * norm_one
    assert one[-2][0] < one[0][0] - 0.1, "the run itself must learn"


def test_adapters_are_saved_alone_with_their_optimizer(tuned, base):
    folder, _ = tuned("lora", *LORA)
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    keys = set(read_index(checkpoint / METADATA).tensors)
    halves = {key for key in keys if not key.startswith("optimizer.")}
    assert len(halves) == 4 * 4 * 2 and all(key.startswith("adapters.") for key in halves)
    assert {key for key in keys if key.startswith("optimizer.")} == {
        f"optimizer.state.{kind}.{key}" for kind in ("param", "exp_avg", "exp_avg_sq") for key in halves
    }
    held = read_description(checkpoint)
    assert held.adapter is not None and held.adapter.num_tokens == 700
    assert held.adapter.path == str(next((base / "checkpoints").glob("step_*")))


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_the_same_to_the_bit(tuned, way):
    _, through = tuned(way, *WAYS[way])
    tuned(f"{way}_cut", *WAYS[way], f"train.max_steps={STEPS // 2}")
    folder = tuned(f"{way}_cut")[0]
    _, resumed = tuned(f"{way}_resumed", *WAYS[way], f"train.run_dir={folder}")
    assert resumed == through


def test_the_best_checkpoint_is_kept(tuned):
    often = ["validation.interval=2 steps", "checkpoint.keep_last=1", "checkpoint.async_save=false"]
    folder, _ = tuned("best", "finetune.keep_best=true", *often, "schedule.lr=3e-2", "schedule.min_lr=3e-2")
    best = json.loads((folder / "best.json").read_text())
    losses = {record.step: record.lm_loss for record in read_metrics(folder).validation}
    assert best["loss"] == min(losses.values()) and losses[best["step"]] == best["loss"]
    kept = {path.name for path in (folder / "checkpoints").glob("step_*")}
    assert kept == {best["checkpoint"], f"step_{STEPS:07d}"}


@pytest.mark.slow
def test_a_hugging_face_folder_is_a_base_too(tuned, ranks, recipe, tmp_path):
    """Without rows that pad the vocabulary, which such a folder has not, and which take part in the softmax."""
    from megatron_sky.convert.huggingface.folder import write_hf
    from megatron_sky.convert.sources import open_source

    exact = ["model.vocab_size=703", "model.vocab_multiple=1"]
    train_base(ranks, recipe, tmp_path / "base", *exact, "tokenizer.path=null")
    write_hf(open_source(tmp_path / "base"), tmp_path / "hf")
    two = [*exact, "train.max_steps=2"]
    _, native = tuned("from_native", f"finetune.base={tmp_path / 'base'}", *two)
    folder, got = tuned("from_hf", f"finetune.base={tmp_path / 'hf'}", *two)
    assert got == native
    assert read_description(folder / "base").layout.startswith("converted from a Hugging Face folder")
