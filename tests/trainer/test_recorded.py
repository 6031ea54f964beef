"""A run that an earlier version left is read in every part, and goes on as it would have then.

`tests/trainer/recorded/` was made by `python -m tests.trainer.record`, in the version before the checkpoint manager.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.description import read_description, tokenizer_in
from megatron_sky.config import load_config
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.evaluate.results import read_loss
from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.slurm import attempts
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.trainer import run_record
from megatron_sky.trainer.state import TrainState
from tests.trainer.record import RECORDED, VOCAB_SIZE

RUN = RECORDED / "run"
CHECKPOINT = RUN / "checkpoints/step_0000003"


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of all that was recorded."""
    return shutil.copytree(RECORDED, tmp_path / "recorded")


def test_metrics():
    metrics = read_metrics(RUN)
    assert metrics.notes == [] and [record.step for record in metrics.train] == [1, 2, 3, 4, 5]
    assert metrics.train[-1].lm_loss == pytest.approx(6.277318, abs=1e-6)
    assert [(record.step, record.set) for record in metrics.validation] == [(3, "en"), (5, "en")]
    events = [event.event for event in metrics.events]
    assert events.count("resume") == events.count("start") == 1 and events.count("checkpoint") == 2
    (data, _) = [event.fields for event in metrics.events if event.event == "data"]
    assert data["sources"][0]["tokens"] == 2939


def test_the_attempts_and_what_slurm_decides_by_them(copied):
    recorded = run_record.read_attempts(RUN, pytest.fail)
    assert [each["slurm"]["attempt"] for each in recorded] == [0, 1] == [0, recorded[1]["slurm"]["attempt"]]
    assert [each["ended"]["action"] for each in recorded] == ["requeue", "done"]
    assert attempts.read_run(RUN) == recorded and [job.job_id for job in attempts.read_jobs(RUN)] == ["7"]
    config = load_config([copied / "recipe.yaml"], [f"train.run_dir={copied / 'run'}"])
    begun = attempts.begin(config, max_requeues=1, environ={"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
    attempts.end(begun, 1, max_requeues=1)
    assert attempts.read_run(copied / "run")[:2] == recorded


def test_the_checkpoint_says_what_it_holds():
    store.verify(CHECKPOINT)
    assert store.find_latest(RUN, pytest.fail) == CHECKPOINT
    description = read_description(CHECKPOINT)
    assert TrainState.from_dict(description.progress) == TrainState(3, 12, 192, session="")
    assert description.config == load_config([RUN / "config.yaml"], ["train.max_steps=3"])
    assert load_tokenizer(tokenizer_in(CHECKPOINT)).sha256 == load_tokenizer(RECORDED / "tokenizer.model").sha256


def test_the_pair_and_its_meta_file():
    tokenizer = load_tokenizer(RECORDED / "tokenizer.model")
    source = open_source(
        RECORDED / "tokens/en", vocab_size=VOCAB_SIZE, tokenizer_sha256=tokenizer.sha256, eod_id=tokenizer.eod_id
    )
    assert source.tokens.num_tokens == source.meta.num_tokens == 2939 and source.meta.documents.written == 6


def test_an_evaluation():
    results = read_loss(RUN / "eval")
    (model,) = results.models
    assert model.model.step == 3 and model.domains["en"].loss == pytest.approx(6.246908, abs=1e-6)
    assert json.loads((RUN / "eval/documents/run_step_0000003.jsonl").read_text().splitlines()[0])


def test_it_goes_on_from_its_checkpoint_with_the_losses_of_then(ranks, copied):
    """Steps 4 and 5, which the recorded run had trained, are trained again from step 3."""
    then = {record.step: record.lm_loss for record in read_metrics(RUN).train}
    now = ranks(1, train_in, str(copied))[0]
    assert now.keys() == then.keys()
    for step in (4, 5):
        assert now[step] == pytest.approx(then[step], abs=1e-5)
    log = (copied / "run/logs/rank_00000.log").read_text()
    assert "training from step 3 (192 tokens): 2 steps to 320 tokens" in log
    assert len(run_record.read_attempts(copied / "run", pytest.fail)) == 3


def train_in(info, folder: str) -> dict[int, float]:
    """Trains the recipe of `folder` in it; the loss of every step."""
    from megatron_sky.trainer.run import train

    home = os.getcwd()
    os.chdir(folder)
    try:
        train(load_config(["recipe.yaml"]), info)
        return {record.step: record.lm_loss for record in read_metrics("run").train}
    finally:
        os.chdir(home)
