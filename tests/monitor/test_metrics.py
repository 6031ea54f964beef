"""metrics.jsonl survives kills, resumes and NaNs; TensorBoard and W&B receive what the file holds."""

import importlib.machinery
import json
import math
import os
import shutil
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sky.config.schema import WandbConfig
from megatron_sky.errors import MissingDependency, RunError
from megatron_sky.monitor.metrics import (
    METRICS_FILE,
    MetricsWriter,
    TrainRecord,
    ValidationRecord,
    read_metrics,
)

floats = st.floats(allow_nan=False)
# The machine may be busy with other work: slow draws are no failure of ours.
patient = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def train_record(step, **changes):
    values = {
        "consumed_samples": 8 * step,
        "consumed_tokens": 1024 * step,
        "lm_loss": 5.0 / step,
        "lr": 6e-4,
        "grad_norm": 0.8,
        "global_batch_size": 8,
        "step_seconds": 0.25,
        "tokens_per_second": 4096.0,
        "tokens_per_second_per_gpu": 2048.0,
        "tflops_per_gpu": 0.04,
        "time": 1.7e9 + step,
    }
    return TrainRecord(step=step, **(values | changes))


def validation_record(step, name="code", loss=3.0):
    return ValidationRecord(
        step=step, consumed_tokens=1024 * step, set=name, lm_loss=loss, tokens=4096, seconds=0.1, time=1.7e9
    )


def writer(run_dir, tensorboard=False, wandb=None):
    return MetricsWriter(run_dir, tensorboard=tensorboard, wandb=wandb, config={"train": {"tokens": 1}})


def test_round_trip(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.event("start", step=0, layout="TP2 x PP1 x DP1")
        metrics.validation(validation_record(0))
        metrics.train(train_record(1, mfu=0.4))
        metrics.train(train_record(2))
    history = read_metrics(tmp_path)
    assert history.train == [train_record(1, mfu=0.4), train_record(2)]
    assert history.validation == [validation_record(0)]
    assert [(each.event, each.fields) for each in history.events] == [
        ("start", {"step": 0, "layout": "TP2 x PP1 x DP1"})
    ]
    assert history.notes == []


@patient
@given(loss=st.floats(), lr=floats, norm=st.floats(), mfu=st.none() | floats)
def test_any_number_comes_back_and_every_line_is_strict_json(tmp_path_factory, loss, lr, norm, mfu):
    run_dir = tmp_path_factory.mktemp("run")
    with writer(run_dir) as metrics:
        metrics.train(train_record(1, lm_loss=loss, lr=lr, grad_norm=norm, mfu=mfu))
    line = (run_dir / METRICS_FILE).read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = read_metrics(run_dir).train[0]
    assert repr((back.lm_loss, back.lr, back.grad_norm, back.mfu)) == repr((loss, lr, norm, mfu))


def test_not_finite_values_in_events(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.event("skip", step=3, grad_norms=[math.inf, -math.inf, math.nan, 1.5], note="a\nb \u4e2d")
    fields = read_metrics(tmp_path).events[0].fields
    assert repr(fields["grad_norms"]) == "[inf, -inf, nan, 1.5]"
    assert fields["note"] == "a\nb \u4e2d"


def test_each_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    metrics = writer(tmp_path)
    metrics.train(train_record(1))
    assert [each.step for each in read_metrics(tmp_path).train] == [1]
    metrics.close()
    metrics.close()


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_torn_last_line_is_skipped_and_the_next_writer_begins_a_line(tmp_path, cut):
    path = tmp_path / METRICS_FILE
    with writer(tmp_path) as metrics:
        metrics.train(train_record(1))
        whole = path.stat().st_size
        metrics.train(train_record(2))
    os.truncate(path, whole + cut)
    history = read_metrics(tmp_path)
    assert [each.step for each in history.train] == [1]
    assert len(history.notes) == 1 and "line 2" in history.notes[0]
    with writer(tmp_path) as metrics:
        metrics.event("resume", step=1)
        metrics.train(train_record(2, lm_loss=9.0))
    history = read_metrics(tmp_path)
    assert [(each.step, each.lm_loss) for each in history.train] == [(1, 5.0), (2, 9.0)]
    assert len(history.notes) == 1


def test_a_whole_last_line_without_its_newline_counts(tmp_path):
    path = tmp_path / METRICS_FILE
    with writer(tmp_path) as metrics:
        metrics.train(train_record(1))
    os.truncate(path, path.stat().st_size - 1)
    with writer(tmp_path) as metrics:
        metrics.train(train_record(2))
    history = read_metrics(tmp_path)
    assert [each.step for each in history.train] == [1, 2] and not history.notes


def test_lines_of_another_shape_are_skipped_with_a_note(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(
        b'{"kind": "train", "step": 1}\n[1]\n\0\0\0\n{"kind": "else"}\n{"kind":"event","event":"e","time":1}\n'
    )
    history = read_metrics(tmp_path)
    assert len(history.events) == 1 and len(history.notes) == 4


def test_a_field_of_a_later_version_is_passed_over(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.train(train_record(1))
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text().replace('"kind"', '"new_field": [1], "kind"'))
    assert read_metrics(tmp_path).train == [train_record(1)]


def test_resume_voids_later_steps_written_before_it(tmp_path):
    with writer(tmp_path) as metrics:
        for step in range(1, 8):
            metrics.train(train_record(step, lm_loss=1.0))
        metrics.validation(validation_record(4, loss=1.0))
        metrics.validation(validation_record(6, loss=1.0))
    with writer(tmp_path) as metrics:
        metrics.event("resume", step=4)
        metrics.validation(validation_record(4, loss=2.0))
        metrics.train(train_record(5, lm_loss=2.0))
    history = read_metrics(tmp_path)
    assert [(each.step, each.lm_loss) for each in history.train] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]
    assert [(each.step, each.lm_loss) for each in history.validation] == [(4, 2.0)]


@patient
@given(data=st.data(), attempts=st.integers(1, 5))
def test_history_is_one_unbroken_line_of_steps(tmp_path_factory, data, attempts):
    """Whatever the kills and resumes: each step once, from the attempt that reached it last."""
    run_dir = tmp_path_factory.mktemp("run")
    reached, expected = 0, {}
    for attempt in range(attempts):
        begin = data.draw(st.integers(0, reached))
        end = data.draw(st.integers(begin, begin + 6))
        expected = {step: owner for step, owner in expected.items() if step <= begin}
        with writer(run_dir) as metrics:
            metrics.event("resume" if begin else "start", step=begin)
            for step in range(begin + 1, end + 1):
                metrics.train(train_record(step, grad_norm=float(attempt)))
                expected[step] = attempt
        reached = end
    assert {each.step: each.grad_norm for each in read_metrics(run_dir).train} == expected


def test_missing_file(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_metrics(tmp_path)


def test_a_link_in_the_place_of_metrics_is_not_followed(tmp_path):
    (tmp_path / METRICS_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="symbolic link"):
        writer(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_metrics_that_are_deleted_are_made_anew(tmp_path):
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.train(train_record(1))
        shutil.rmtree(tmp_path / "tensorboard")
        (tmp_path / METRICS_FILE).unlink()
        metrics.train(train_record(2))
    assert [record.step for record in read_metrics(tmp_path).train] == [2]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


class BrokenWandb(types.ModuleType):
    """W&B that fails from its `fails`-th call on: `init`, `log` or `finish`."""

    def __init__(self, fails: str):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.calls = []
        self._fails = fails

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append(name)
            if name == self._fails:
                raise RuntimeError("no network")
            return self

        return call


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_wandb_that_fails_is_told_once(fails, tmp_path, monkeypatch):
    library, told = BrokenWandb(fails), []
    monkeypatch.setitem(sys.modules, "wandb", library)
    with MetricsWriter(
        tmp_path, tensorboard=False, wandb=WandbConfig(project="p"), config={}, warn=told.append
    ) as metrics:
        for step in range(1, 4):
            metrics.train(train_record(step))
    assert len(told) == 1 and "the run goes on without: RuntimeError: no network" in told[0]
    assert library.calls.count("log") == (0 if fails == "init" else 3)
    assert len(read_metrics(tmp_path).train) == 3


def test_a_run_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        writer(tmp_path / "run")


def test_tensorboard_has_the_scalars_and_is_purged_on_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.event("start", step=0)
        metrics.validation(validation_record(0))
        for step in (1, 2, 3, 4):
            metrics.train(train_record(step, lm_loss=1.0))
    os.rename(next((tmp_path / "tensorboard").iterdir()), tmp_path / "tensorboard" / "events.out.tfevents.1.a")
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.event("resume", step=2)
        metrics.train(train_record(3, lm_loss=2.0, mfu=0.5))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(each.step, each.value) for each in board.Scalars("train/lm_loss")]
    assert losses == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert [each.value for each in board.Scalars("train/mfu")] == [0.5]
    assert [(each.step, each.value) for each in board.Scalars("validation/code/lm_loss")] == [(0, 3.0)]
    assert "train/step" not in board.Tags()["scalars"]


def test_writing_needs_no_torch():
    """The loggers are also used by tools that start without torch."""
    import subprocess

    code = (
        "import sys, tempfile; from megatron_sky import log;"
        "from megatron_sky.monitor import metrics, console, throughput;"
        "w = metrics.MetricsWriter(tempfile.mkdtemp(), tensorboard=True, wandb=None, config={});"
        "w.event('start', step=0); w.close(); assert not {'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wandb_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependency, match=r'pip install "megatron-sky\[wandb\]"'):
        writer(tmp_path, wandb=WandbConfig(project="p"))


def test_wandb_goes_on_under_the_same_id(tmp_path, monkeypatch):
    calls = []

    class Run:
        def define_metric(self, *args, **kwargs):
            calls.append(("define_metric", args, kwargs))

        def log(self, values):
            calls.append(("log", values))

        def finish(self):
            calls.append(("finish",))

    library = types.ModuleType("wandb")
    library.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    library.init = lambda **kwargs: calls.append(("init", kwargs)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", library)
    for step in (1, 2):
        with writer(tmp_path, wandb=WandbConfig(project="p", mode="offline")) as metrics:
            metrics.train(train_record(step))
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and first["mode"] == "offline"
    assert first["name"] == tmp_path.name and first["config"] == {"train": {"tokens": 1}}
    logged = [call[1] for call in calls if call[0] == "log"]
    assert [each["step"] for each in logged] == [1, 2] and logged[0]["train/lm_loss"] == 5.0
    assert calls[-1] == ("finish",)


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        with writer(tmp_path, wandb=WandbConfig(project="p", mode="offline")) as metrics:
            metrics.train(train_record(step))
            metrics.validation(validation_record(step))
    run_id = (tmp_path / "wandb_run_id").read_text().strip()
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
