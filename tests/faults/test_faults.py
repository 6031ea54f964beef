"""Every fault ends as promised: nothing lost, nothing wrong continued, and the cause named."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.config import dump_config, load_config
from megatron_sky.monitor.metrics import read_metrics
from tests.faults import faults
from tests.faults.harness import Ended, kill_group, run_hurt, wait_for

STEPS = 10
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hurt(never_a_rank, recipe):
    """`hurt("key=value", ..., fault=, watch=)`: how a run of STEPS steps ended, with a checkpoint every 4 steps."""

    def run(*overrides: str, fault=None, watch=None) -> Ended:
        config = recipe(f"train.max_steps={STEPS}", "checkpoint.interval=4 steps", *overrides)
        return never_a_rank(1, run_hurt, dump_config(config), fault, watch)[0]

    return run


@pytest.fixture
def run_dir(recipe) -> Path:
    return Path(recipe().train.run_dir)


@pytest.fixture(scope="module")
def unhurt():
    """The losses of the run that nothing happened to; filled by the first test that asks."""
    return {}


def losses(run_dir: Path) -> list[float]:
    return [record.lm_loss for record in read_metrics(run_dir).train]


@pytest.fixture
def expected(unhurt, hurt, recipe, tmp_path):
    """Losses of STEPS steps without a fault."""
    if not unhurt:
        other = tmp_path / "unhurt"
        assert hurt(f"train.run_dir={other}").code == 0
        unhurt["losses"] = losses(other)
    return unhurt["losses"]


def events(run_dir: Path, name: str) -> list[dict]:
    return [event.fields for event in read_metrics(run_dir).events if event.event == name]


def log_of(run_dir: Path) -> str:
    return (run_dir / "logs/rank_00000.log").read_text()


# --- killed ---


def kill_at_a_step(child: int, config) -> None:
    """Waits for a few more steps than there are, then kills everything."""
    metrics = Path(config.train.run_dir) / "metrics.jsonl"
    seen = metrics.read_text().count('"train"') if metrics.is_file() else 0
    more = random.Random(seen).randint(1, 4)
    wait_for(lambda: metrics.is_file() and metrics.read_text().count('"train"') >= seen + more)
    kill_group(child)


@pytest.mark.slow
def test_killed_at_random_steps_again_and_again(hurt, run_dir, expected):
    codes = [hurt("checkpoint.interval=2 steps", watch=kill_at_a_step).code for _ in range(5)]
    assert -signal.SIGKILL in codes
    assert hurt("checkpoint.interval=2 steps").code == 0
    assert losses(run_dir) == expected


class KillInASave:
    """Kills when the first save has begun, a little later each time."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, child: int, config) -> None:
        folder = Path(config.train.run_dir) / "checkpoints"
        wait_for(lambda: folder.is_dir() and any(each.suffix == ".tmp" for each in folder.iterdir()))
        time.sleep(self.seconds)
        kill_group(child)


@pytest.mark.slow
def test_killed_at_ten_points_of_a_checkpoint_write(hurt, run_dir, expected):
    for point in range(10):
        shutil.rmtree(run_dir, ignore_errors=True)
        hurt(watch=KillInASave(point * 0.05))
        told: list[str] = []
        latest = store.find_latest(run_dir, told.append)  # what it finds is whole, and nothing it sees is half
        assert latest is None or latest.name in ("step_0000004", "step_0000008", "step_0000010")
        assert told == []
    assert hurt().code == 0
    assert losses(run_dir) == expected


# --- damaged checkpoints ---


def truncate_a_shard(folder: Path) -> None:
    shard = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)


def flip_a_bit(folder: Path) -> None:
    shard = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def swap_the_manifest(folder: Path) -> None:
    other = folder.with_name("step_0000004")
    shutil.copy(other / "manifest.json", folder / "manifest.json")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate_a_shard, "bytes, the manifest says"),
        (flip_a_bit, "its hash differs"),
        (lose_the_manifest, "never finished"),
        (swap_the_manifest, "is the manifest of step 4"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, told, hurt, run_dir, expected):
    assert hurt("train.max_steps=8").code == 0
    damage(run_dir / "checkpoints/step_0000008")
    assert hurt().code == 0
    assert told in log_of(run_dir) and "skipping a damaged checkpoint" in log_of(run_dir)
    assert [event["step"] for event in events(run_dir, "resume")] == [4]
    assert losses(run_dir) == expected


@pytest.mark.slow
def test_retention_does_not_stumble_over_a_damaged_checkpoint(hurt, run_dir, expected):
    """The run goes on from step 4, as that of step 8 is damaged, is asked to leave at 6, and goes on from there."""
    assert hurt("train.max_steps=8").code == 0
    flip_a_bit(run_dir / "checkpoints/step_0000008")
    shutil.copytree(run_dir / "checkpoints/step_0000004", run_dir / "checkpoints/step_0000002")
    assert hurt("train.max_steps=6", "checkpoint.keep_last=1", "checkpoint.interval=1 steps").code == 0
    assert [step for step, _ in store.list_checkpoints(run_dir)] == [2, 6, 8]
    assert log_of(run_dir).count("retention passes over a damaged checkpoint") == 1  # the copy of another step
    assert hurt("checkpoint.keep_last=1").code == 0
    assert [event["step"] for event in events(run_dir, "resume")] == [4, 6]
    assert losses(run_dir) == expected


def test_what_a_cut_off_save_left_is_swept_at_the_next_start(hurt, run_dir):
    assert hurt("train.max_steps=4").code == 0
    for name in ("step_0000003.tmp", "step_0000002.deleted"):
        shutil.copytree(run_dir / "checkpoints/step_0000004", run_dir / "checkpoints" / name)
    assert hurt("train.max_steps=5").code == 0
    assert sorted(each.name for each in (run_dir / "checkpoints").iterdir()) == ["step_0000004", "step_0000005"]
    assert "step_0000003.tmp: deleted" in log_of(run_dir)


def test_a_checkpoint_of_a_newer_format_is_not_passed_over(hurt, run_dir):
    assert hurt("train.max_steps=4").code == 0
    path = run_dir / "checkpoints/step_0000004/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    ended = hurt()
    assert ended.code == 4 and "format_version = 99" in ended.message and "newer" in ended.message


def test_a_checkpoint_that_is_a_program_is_refused(hurt, run_dir, tmp_path):
    """The index of tensors is a pickle: one that names anything else is not run."""
    import pickle

    assert hurt("train.max_steps=4").code == 0
    folder, trace = run_dir / "checkpoints/step_0000004", tmp_path / "ran"

    class Program:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    (folder / ".metadata").write_bytes(pickle.dumps(Program()))
    names = store.files_of(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: r.to_dict() for name, r in store.hash_files(folder, names).items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    ended = hurt()
    assert ended.code == 4 and "mkdir" in ended.message
    assert not trace.exists()


# --- disks ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_no_room_for_a_checkpoint_is_told_before_the_start(hurt, small_disk):
    ended = hurt(f"train.run_dir={small_disk}/run", "model.hidden_size=128", "model.ffn_hidden_size=512")
    assert ended.code == 5 and "one checkpoint needs about" in ended.message


@pytest.mark.slow
def test_a_full_disk_during_a_save(hurt, small_disk):
    """The run ends with the reason, at the save or where it can't write its metrics; what was whole stays whole."""
    run = small_disk / "run"
    ended = hurt(f"train.run_dir={run}", "checkpoint.interval=2 steps", fault=faults.blind_to_free_space)
    assert ended.code in (4, 5) and "can't be written" in ended.message and "fix:" in ended.message
    assert store.find_latest(run, pytest.fail).name == "step_0000002"


def test_a_failed_save_is_told_and_training_goes_on(hurt, run_dir, expected):
    """The saves of steps 4 and 8 fail, the last one does not."""
    assert hurt(fault=faults.saves_fail_until_step_8).code == 0
    assert [event["step"] for event in events(run_dir, "checkpoint_failed")] == [4, 8]
    assert [step for step, _ in store.list_checkpoints(run_dir)] == [STEPS]
    assert losses(run_dir) == expected


class MakeReadOnly:
    """Remounts the disk read-only once the first checkpoint is there."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, child: int, config) -> None:
        wait_for(lambda: (self.folder / "run/checkpoints/step_0000002/manifest.json").is_file())
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=False)


@pytest.mark.slow
def test_a_disk_that_turns_read_only(hurt, small_disk):
    ended = hurt(f"train.run_dir={small_disk}/run", "checkpoint.interval=2 steps", watch=MakeReadOnly(small_disk))
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert ended.code in (4, 5), ended.message
    assert "Traceback" not in ended.message
    assert store.find_latest(small_disk / "run", pytest.fail) is not None


# --- bad numbers ---


def test_nan_stops_and_names_the_samples(hurt, run_dir):
    ended = hurt(fault=faults.nan_in_the_data)
    assert ended.code == 5
    assert f"step {faults.BAD_STEP}: lm_loss = nan is not finite" in ended.message
    assert "run again it gave the same: the data or the model" in ended.message
    assert "en_web documents" in ended.message or "zh_web documents" in ended.message
    (suspects,) = (run_dir / "bad_steps").iterdir()
    assert len(json.loads(suspects.read_text())) == 8
    assert store.find_latest(run_dir, pytest.fail).name == "step_0000004"


def test_a_passing_fault_is_told_from_data_and_changes_nothing(hurt, run_dir, expected):
    assert hurt(fault=faults.nan_once).code == 0
    (event,) = events(run_dir, "bad_step")
    assert "passing hardware fault" in event["cause"]
    assert losses(run_dir) == expected


def test_nan_skipped(hurt, run_dir, expected):
    assert hurt("resilience.on_nonfinite=skip", fault=faults.nan_in_the_data).code == 0
    found = losses(run_dir)
    assert found[: faults.BAD_STEP - 1] == expected[: faults.BAD_STEP - 1]
    assert len(found) == STEPS - 1 and all(loss == loss for loss in found)
    (event,) = events(run_dir, "bad_step")
    assert event["step"] == faults.BAD_STEP and event["action"] == "skip"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "policy"),
    [
        (faults.nan_in_the_data, ["resilience.on_nonfinite=rollback"]),
        (
            faults.spike_in_the_data,
            ["resilience.on_spike=rollback", "resilience.spike_window=8", "resilience.spike_zscore=100"],
        ),
    ],
)
def test_rolled_back_over_the_samples(fault, policy, hurt, run_dir, expected):
    assert hurt(*policy, fault=fault).code == 0
    found = losses(run_dir)
    assert len(found) == STEPS
    assert found[: faults.BAD_STEP - 1] == expected[: faults.BAD_STEP - 1]
    assert [event["step"] for event in events(run_dir, "resume")] == [4]
    assert [event["step"] for event in events(run_dir, "checkpoint")] == [4, 8, STEPS], "step 4 is not saved again"
    state = json.loads((store.find_latest(run_dir, pytest.fail) / "train_state.json").read_text())["progress"]
    first = (faults.BAD_STEP - 1) * 8
    assert state["skipped"] == [[first, first + 8]]
    assert hurt(f"train.max_steps={STEPS + 1}", *policy).code == 0  # a resumed run still steps over them


def test_a_spike_stops(hurt):
    ended = hurt(
        "resilience.on_spike=stop",
        "resilience.spike_window=8",
        "resilience.spike_zscore=100",
        fault=faults.spike_in_the_data,
    )
    assert ended.code == 5 and "robust deviations above" in ended.message


def test_a_loss_that_is_not_finite_stops_in_fp16_too(hurt, run_dir):
    """Its gradients overflow as well, which alone would only skip the update and lower the loss scale."""
    ended = hurt("precision.dtype=fp16", "optimizer.clip_grad=0", "schedule.lr=1e4", "schedule.warmup_tokens=0")
    assert ended.code == 5 and "lm_loss = nan is not finite" in ended.message
    assert len(losses(run_dir)) < STEPS


def test_too_many_bad_steps_stop(hurt):
    ended = hurt("resilience.on_nonfinite=rollback", "resilience.max_bad_steps=1", fault=every_step_is_bad)
    assert ended.code == 5


def every_step_is_bad(config) -> None:
    from dataclasses import replace

    faults._patch_compute(
        lambda trainer, result, times: (
            replace(result, lm_loss=float("inf")) if trainer.state.step >= faults.BAD_STEP - 1 else result
        )
    )


def test_nothing_to_roll_back_to(hurt):
    ended = hurt("resilience.on_nonfinite=rollback", "checkpoint.interval=null", fault=faults.nan_in_the_data)
    assert ended.code == 5 and "no checkpoint to go back to" in ended.message


# --- asked to leave ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "step", "more"),
    [
        (faults.signal_in_a_step, faults.BAD_STEP, []),
        (faults.two_signals_in_a_step, faults.BAD_STEP, []),
        (faults.signal_in_a_save, 5, []),
        (faults.signal_in_validation, 4, ["validation.interval=3 steps"]),
    ],
)
def test_leaving_saves_and_the_same_command_goes_on(fault, step, more, hurt, run_dir, expected):
    ended = hurt(*more, fault=fault)
    assert ended.code == 75, ended.message
    assert "everything is saved" in ended.message and f"after step {step}" in ended.message
    assert store.find_latest(run_dir, pytest.fail).name == f"step_{step:07d}"
    assert hurt(*more).code == 0
    assert losses(run_dir) == expected


def test_leaving_before_the_jobs_end(hurt, run_dir, expected):
    ended = hurt("resilience.time_limit_seconds=1000", "resilience.exit_before_seconds=999.9")
    assert ended.code == 75 and "time is nearly over" in ended.message
    assert hurt().code == 0
    assert losses(run_dir) == expected


# --- data ---


def test_data_that_shrinks_under_the_run(hurt, corpus, tmp_path):
    for ending in ("bin", "idx", "meta.json"):
        for name in ("en_web", "zh_web"):
            shutil.copy(corpus / f"tokens/train/{name}.{ending}", tmp_path / f"{name}.{ending}")
    sources = [f"data.train.{i}.path={tmp_path}/{name}" for i, name in enumerate(("en_web", "zh_web"))]
    ended = hurt(*sources, fault=faults.truncated_data)
    assert ended.code == 3 and ".bin" in ended.message, ended.message


# --- several ranks ---


def train_as(info, texts: list[str], folder: str, slow: bool = False) -> str:
    """Trains rank `info.rank` with its own recipe in its own folder; what it was told if it was refused."""
    from megatron_sky.errors import SkyError
    from megatron_sky.trainer.loop import Trainer
    from megatron_sky.trainer.run import train

    home = os.getcwd()
    os.makedirs(f"{folder}/{info.rank}", exist_ok=True)
    os.chdir(f"{folder}/{info.rank}")
    compute = Trainer.compute
    if slow:
        faults._patch_compute(faults.slow_rank_1)
    try:
        path = Path("recipe.yaml")
        path.write_text(texts[info.rank])
        train(load_config([path]), info)
    except SkyError as error:
        return str(error)
    finally:
        Trainer.compute = compute
        os.chdir(home)
    return ""


@pytest.mark.slow
def test_ranks_with_different_recipes_are_told(ranks, recipe, tmp_path):
    texts = [dump_config(recipe()), dump_config(recipe("schedule.lr=0.5"))]
    for message in ranks(2, train_as, texts, str(tmp_path)):
        assert "rank 1: the recipe" in message


@pytest.mark.slow
def test_ranks_with_different_data_are_told(ranks, recipe, tmp_path, corpus):
    for rank, name in enumerate(("en_web", "zh_web")):
        (tmp_path / str(rank)).mkdir()
        for ending in ("bin", "idx", "meta.json"):
            shutil.copy(corpus / f"tokens/train/{name}.{ending}", tmp_path / f"{rank}/source.{ending}")
    text = dump_config(recipe("data.train=[{name: source, path: source}]"))
    for message in ranks(2, train_as, [text, text], str(tmp_path)):
        assert "rank 1: data of source" in message


@pytest.mark.slow
def test_a_slow_rank_is_named(ranks, recipe, tmp_path, run_dir):
    text = dump_config(recipe("train.max_steps=4", "resilience.straggler_interval=4"))
    assert ranks(2, train_as, [text, text], str(tmp_path), True) == ["", ""]
    (event,) = events(run_dir, "slow_rank")
    assert event["rank"] == 1 and event["work_seconds"] > 0.2
    assert "rank 1 on" in log_of(run_dir)


# --- through the launcher ---

INJECT = """
import importlib.abc, os, sys
class After(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "megatron_sky.trainer.run" and "RANK" in os.environ:
            sys.meta_path.remove(self)
            from megatron_sky.trainer.loop import Trainer
            compute = Trainer.compute
            def patched(self, planned, batches):
                if self.context.rank == 1 and self.state.step == 6:
                    {work}
                return compute(self, planned, batches)
            Trainer.compute = patched
        return None
sys.meta_path.insert(0, After())
"""


@pytest.fixture
def launched(recipe, tmp_path):
    """`launched("python code for rank 1 in step 7", "key=value", ...)`: a Popen of the launcher over two ranks."""

    def start(work: str, *overrides: str) -> subprocess.Popen:
        path = tmp_path / "launched.yaml"
        path.write_text(dump_config(recipe(f"train.max_steps={STEPS}", "checkpoint.interval=2 steps", *overrides)))
        hooks = tmp_path / "hooks"
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(INJECT.format(work=work))
        env = os.environ | {"PYTHONPATH": f"{hooks}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "megatron_sky", "train", str(path), "--nproc", "2"]
        return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
def test_one_rank_killed_ends_the_job_and_is_named(launched, run_dir, hurt, expected):
    job = launched("import signal; os.kill(os.getpid(), signal.SIGKILL)")
    _, err = job.communicate(timeout=120)
    assert job.returncode == 1
    assert err.strip().splitlines()[-1].startswith("megatron-sky: rank 1: killed by SIGKILL"), err
    assert store.find_latest(run_dir, pytest.fail) is not None
    assert hurt().code == 0  # and one process goes on where two were
    assert len(losses(run_dir)) == STEPS
    assert max(abs(a - b) for a, b in zip(losses(run_dir), expected, strict=True)) <= 1e-5


@pytest.mark.slow
def test_a_hung_rank_is_named_with_its_stack(launched):
    start = time.monotonic()
    job = launched("import time; time.sleep(3600)", "resilience.step_timeout_seconds=10")
    _, err = job.communicate(timeout=180)
    assert time.monotonic() - start < 120
    assert job.returncode == 86, err
    assert "rank 1 fell behind" in err.strip().rpartition("megatron-sky: ")[2]
    assert "sitecustomize.py" in err  # the stack shows where it sleeps


@pytest.mark.slow
def test_a_signal_to_the_launcher_reaches_the_ranks(launched, run_dir):
    job = launched("pass")
    metrics = run_dir / "metrics.jsonl"
    assert wait_for(lambda: metrics.is_file() and '"train"' in metrics.read_text(), seconds=120)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    if job.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert job.returncode == 75, err
    assert "everything is saved" in err.strip().rpartition("megatron-sky: ")[2]


def test_a_release_mark_is_saved_and_kept(hurt, run_dir):
    marks = "checkpoint.release_marks=[700]"  # reached by the third step of 256 tokens
    assert hurt("checkpoint.interval=4 steps", "checkpoint.keep_last=1", marks).code == 0
    assert [step for step, _ in store.list_checkpoints(run_dir)] == [3, STEPS]


def test_a_lock_that_is_deleted_is_made_anew(hurt, run_dir, expected):
    assert hurt(fault=faults.deleted_lock).code == 0
    assert "it is made anew and held" in log_of(run_dir)
    assert losses(run_dir) == expected


def test_a_lock_that_was_deleted_and_taken_ends_the_job_before_both_write(hurt, run_dir):
    ended = hurt(fault=faults.lock_taken_on_another_machine)
    assert ended.code == 5
    assert "was deleted while this job ran, which ends here" in ended.message and "pid 9 on n7" in ended.message
    assert len(losses(run_dir)) == 6  # of the step in hand
