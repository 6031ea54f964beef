"""When a checkpoint is due, what counts as good, what is kept, and that ranks verify and agree together."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.manager import CheckpointManager
from megatron_sky.checkpoint.saver import SaveOutcome
from megatron_sky.config.schema import CheckpointConfig
from megatron_sky.errors import CheckpointError
from tests.checkpoint.folders import write_checkpoint


@dataclass
class Progress:
    step: int
    consumed_tokens: int
    best_tokens: int | None = None

    def to_dict(self) -> dict:
        return {"step": self.step, "consumed_tokens": self.consumed_tokens}


class FirstRank:
    """A context of one rank."""

    rank, world_size = 0, 1

    def from_first_rank(self, work):
        return work()

    def gather_objects(self, value):
        return [value]


class FakeSaver:
    """Writes small whole checkpoints; each is in flight until it is polled. `failing`: steps that can't be saved."""

    def __init__(self, run_dir: Path, failing=()):
        self.run_dir, self.failing, self.flight = run_dir, failing, None

    def start(self, progress: dict, *, wait: bool = False) -> list[SaveOutcome]:
        ended = self.finish()
        self.flight = progress
        return [*ended, *self.finish()] if wait else ended

    def poll(self) -> list[SaveOutcome]:
        return self.finish()

    def finish(self) -> list[SaveOutcome]:
        if self.flight is None:
            return []
        progress, self.flight = self.flight, None
        final = store.folder_of(self.run_dir, progress["step"])
        if progress["step"] in self.failing:
            return [SaveOutcome(progress["step"], final, 0.0, "the disk is full")]
        write_checkpoint(self.run_dir, progress["step"], progress["consumed_tokens"])
        return [SaveOutcome(progress["step"], final, 0.1)]


class Run:
    """A run of 10 tokens a step, as the loop drives the manager."""

    def __init__(self, run_dir, *, marks=(), failing=(), last_good_step=None, step=0, **config):
        self.outcomes, self.loaded = [], []
        self.run_dir = run_dir
        self.manager = CheckpointManager(
            CheckpointConfig(**config),
            run_dir=run_dir,
            context=FirstRank(),
            saver=FakeSaver(run_dir, failing),
            load=self.loaded.append,
            marks=marks,
            progress=Progress(step, 10 * step),
            last_good_step=last_good_step,
            report=self.outcomes.append,
            beat=lambda doing: None,
        )

    def steps(self, first: int, last: int) -> list[int]:
        """The steps at which a save was started."""
        return [step for step in range(first, last + 1) if self.manager.maybe_save(Progress(step, 10 * step))]

    @property
    def on_disk(self) -> list[int]:
        return [step for step, _ in store.list_checkpoints(self.run_dir)]


def test_at_the_interval_and_at_marks(tmp_path):
    run = Run(tmp_path, interval="4 steps", marks=[55, 60, 110])
    assert run.steps(1, 12) == [4, 6, 8, 11, 12]


def test_the_best_so_far_is_saved_and_kept_until_there_is_a_better(tmp_path):
    run = Run(tmp_path, keep_last=1)
    best = {1: 10, 2: 10, 3: 10, 4: 40, 5: 40, 6: 40}
    started = [step for step in best if run.manager.maybe_save(Progress(step, 10 * step, best[step]))]
    assert started == [1, 4]
    run.manager.save_at_end(Progress(6, 60, 40))
    assert run.on_disk == [4, 6]


def test_tokens_that_pass_a_multiple(tmp_path):
    assert Run(tmp_path, interval="25 tokens").steps(1, 10) == [3, 5, 8, 10]


def test_without_an_interval_marks_alone(tmp_path):
    run = Run(tmp_path, marks=[30])
    assert run.steps(1, 5) == [3]
    run.manager.save_at_end(Progress(5, 50))
    assert run.on_disk == [3, 5]


def test_good_is_what_is_whole_on_disk(tmp_path):
    run = Run(tmp_path, interval="2 steps", failing=[4])
    run.steps(1, 2)
    assert run.manager.last_good_step is None, "step 2 is in flight"
    run.steps(3, 4)
    assert run.manager.last_good_step == 2
    run.steps(5, 5)
    assert run.manager.last_good_step == 2 and run.outcomes[-1].failure == "the disk is full"
    run.steps(6, 7)
    assert run.manager.last_good_step == 6 and run.on_disk == [2, 6]


def test_the_last_save_is_not_done_twice_and_may_not_fail(tmp_path):
    run = Run(tmp_path, interval="2 steps", failing=[5])
    run.steps(1, 4)
    run.manager.save_at_end(Progress(4, 40))
    assert [outcome.step for outcome in run.outcomes] == [2, 4]
    with pytest.raises(CheckpointError, match="the disk is full"):
        run.manager.save_at_end(Progress(5, 50))


def test_an_interval_save_that_failed_is_made_up_for_at_the_end(tmp_path):
    run = Run(tmp_path, interval="2 steps", failing=[2])
    run.steps(1, 2)
    run.manager.wait()
    run.manager._saver.failing = []
    run.manager.save_at_end(Progress(2, 20))
    assert run.on_disk == [2] and run.manager.last_good_step == 2


def test_rolled_back_to_the_last_good_one_and_not_saved_again(tmp_path):
    run = Run(tmp_path, interval="2 steps", marks=[60])
    run.steps(1, 5)
    description = run.manager.roll_back()
    assert description.progress["step"] == 4 and run.loaded == [store.folder_of(tmp_path, 4)]
    assert run.manager.last_good_step == 4
    assert run.steps(4, 7) == [6], "step 4 has its checkpoint, and its tokens do not count again"


def test_a_damaged_one_is_not_rolled_back_to(tmp_path, caplog):
    run = Run(tmp_path, interval="2 steps")
    run.steps(1, 5)
    (store.folder_of(tmp_path, 4) / "shard_1").write_bytes(b"x" * 2200)
    assert run.manager.roll_back().progress["step"] == 2
    assert run.manager.last_good_step == 2 and "skipping a damaged checkpoint" in caplog.text


def test_nothing_to_roll_back_to(tmp_path):
    assert Run(tmp_path).manager.roll_back() is None


def test_retention_follows_each_save(tmp_path):
    run = Run(tmp_path, interval="1 steps", keep_last=2, marks=[30])
    run.steps(1, 7)
    run.manager.wait()
    assert run.on_disk == [3, 6, 7]


def test_a_resumed_run_does_not_save_where_it_began(tmp_path):
    write_checkpoint(tmp_path, 4, 40)
    run = Run(tmp_path, step=4, last_good_step=4, interval="4 steps")
    run.manager.save_at_end(Progress(4, 40))
    assert run.outcomes == [] and run.steps(5, 8) == [8]


def test_files_are_shared_out_by_bytes():
    sizes = {"a": 100, "b": 60, "c": 50, "d": 10, "e": 0}
    shares = [store.share_of(sizes, rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(sizes)
    assert [sum(sizes[name] for name in share) for share in shares] == [110, 110]
    assert store.share_of(sizes, 7, 8) == [] and store.share_of({}, 0, 1) == []
