"""The loop's own decisions, with everything that it drives in pretence."""

import math
from types import SimpleNamespace

import pytest

from megatron_sky.checkpoint.description import CheckpointDescription
from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.distributed.topology import Layout
from megatron_sky.errors import LeftEarly, RunError
from megatron_sky.trainer.bad_steps import BadSteps
from megatron_sky.trainer.loop import Trainer
from megatron_sky.trainer.sessions import sessions_of
from megatron_sky.trainer.signals import STOP, STOP_NOW
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepResult

STEP = 8 * 32  # tokens
NAN = StepResult(math.nan, 1.0)


class Pretence:
    """A one-rank run of `config`: `done` lists what the loop did. `results`: by step, in place of good numbers."""

    def __init__(self, config, *, state=None, results=None, stops=None, **resilience):
        self.done: list = []
        self.results, self.stops = results or {}, stops or {}
        self.saved: list[TrainState] = []
        self.last_good_step = None
        context = SimpleNamespace(
            rank=0, layout=Layout.of(config.parallel, 1), agree=list, gather_objects=lambda value: [value]
        )
        note = self.note
        self.trainer = Trainer(
            train=config.train,
            sessions=sessions_of(config),
            context=context,
            state=state or TrainState(),
            files=SimpleNamespace(batches=self.batches, usage=lambda state: [], continue_from=self.continue_from),
            runner=SimpleNamespace(
                needs_data=True,
                seq_length=32,
                sync_seconds=0.0,
                compute=self.compute,
                apply=lambda result, lr: bool(note("apply", lr)) or True,
                forget_moments=lambda: note("forget moments"),
            ),
            validator=SimpleNamespace(
                config=config.validation,
                due=lambda step, before, after: (
                    config.validation.interval is not None and config.validation.interval.due(step, before, after)
                ),
                evaluate=lambda stops_now: note("validate") or {},
            ),
            checkpoints=SimpleNamespace(
                maybe_save=self.maybe_save,
                save_at_end=self.save,
                wait=lambda: note("wait"),
                roll_back=self.roll_back,
                last_good_step=None,
            ),
            bad_steps=BadSteps(
                ResilienceConfig(**resilience),
                context=context,
                name_samples=lambda step, samples: f"samples {samples[0]} to {samples[-1]}",
                report=lambda bad, decision, action: note("bad", bad.step, action),
            ),
            observer=SimpleNamespace(
                event=lambda name, **fields: note(name, fields.get("step")),
                step=lambda state, *_, **__: note("step", state.step),
                warn=lambda text: note("warn"),
                validation=lambda *_: None,
            ),
            stop_requests=self,
            check_folder=lambda: None,
            stragglers=SimpleNamespace(add=lambda seconds: None, maybe_report=lambda step: None),
            profiler=SimpleNamespace(step=lambda step: self),
            garbage=SimpleNamespace(maybe_collect=lambda step: None),
            beat=lambda doing: None,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def note(self, *what) -> None:
        self.done.append(what if len(what) > 1 else what[0])

    @property
    def level(self) -> int:
        return self.stops.get(self.trainer.state.step, 0)

    reason = "signal SIGTERM"

    def batches(self, state):
        while True:
            yield "batch"

    def compute(self, batches, *, num_microbatches, step):
        assert len(batches) == num_microbatches
        results = self.results.get(step + 1, [])
        return results.pop(0) if results else StepResult(2.0, 1.0)

    def maybe_save(self, state) -> bool:
        if state.step % 2 == 0 and state.step != self.trainer.checkpoints.last_good_step:
            self.save(state)
            return True
        return False

    def save(self, state) -> None:
        self.note("save", state.step)
        self.saved.append(TrainState.from_dict(state.to_dict()))
        self.trainer.checkpoints.last_good_step = state.step

    def roll_back(self):
        if not self.saved:
            return None
        self.note("roll back", self.saved[-1].step)
        return CheckpointDescription(None, None, self.saved[-1].to_dict(), {}, "")

    def continue_from(self, checkpoint) -> TrainState:
        return TrainState.from_dict(checkpoint.progress)

    def fit(self) -> list:
        self.trainer.fit()
        return self.done

    def of(self, *names: str) -> list:
        """What was done of these kinds."""
        return [each for each in self.done if (each[0] if isinstance(each, tuple) else each) in names]


def test_steps_validations_and_saves_in_their_order(recipe):
    run = Pretence(recipe("train.max_steps=3", "validation.interval=2 steps"))
    run.fit()
    assert run.of("step", "validate", "save", "sources", "end") == [
        ("step", 1),
        ("step", 2),
        "validate",
        ("save", 2),
        ("sources", 2),
        ("step", 3),
        "validate",
        ("save", 3),
        ("sources", 3),
        ("end", 3),
    ]


@pytest.mark.parametrize(("at_start", "session", "count"), [("true", None, 2), ("false", None, 1), ("true", "", 1)])
def test_validation_before_the_first_step_of_a_run(at_start, session, count, recipe):
    state = TrainState(session=session, validated_step=0 if session == "" else -1)
    run = Pretence(recipe("train.max_steps=1", f"validation.at_start={at_start}"), state=state)
    run.fit()
    assert len(run.of("validate")) == count


def test_the_token_budget_ends_it(recipe):
    run = Pretence(recipe(f"train.tokens={3 * STEP}", "schedule.warmup_tokens=0"))
    run.fit()
    assert run.of("step") == [("step", 1), ("step", 2), ("step", 3)]


def test_nothing_left_to_train_saves_nothing_twice(recipe):
    run = Pretence(recipe("train.max_steps=4"), state=TrainState(4, 32, 4 * STEP, session="", validated_step=4))
    run.fit()
    assert run.of("step", "validate") == [] and run.of("end") == [("end", 4)]


def test_asked_to_stop_it_ends_the_step_saves_and_says_so(recipe):
    run = Pretence(recipe("validation.interval=1 steps"), stops={2: STOP})
    with pytest.raises(LeftEarly, match="left after step 3: signal SIGTERM; everything is saved"):
        run.fit()
    assert run.of("step", "validate", "save", "left")[-3:] == [("step", 3), ("save", 3), ("left", 3)]


def test_asked_to_stop_while_it_started_it_does_nothing(recipe):
    run = Pretence(recipe("validation.at_start=true"), stops={0: STOP_NOW})
    with pytest.raises(LeftEarly, match=r"left \(in a hurry\) after step 0: .*; nothing was done yet"):
        run.fit()
    assert run.of("step", "validate", "save") == []


def test_asked_to_stop_where_it_resumed_all_is_saved_already(recipe):
    run = Pretence(recipe(), state=TrainState(4, 32, 4 * STEP, session=""), stops={4: STOP})
    run.trainer.checkpoints.last_good_step = 4
    with pytest.raises(LeftEarly, match=r"left after step 4: .*everything is saved"):
        run.fit()


def test_a_session_that_begins_from_weights_forgets_the_moments(recipe):
    schedule = "{style: constant, lr: 1e-3}"
    sessions = f"[{{name: one, tokens: {2 * STEP}}}, {{name: two, tokens: {STEP}, start: weights}}]"
    config = recipe(f"sessions={sessions}", f"schedule={schedule}", f"train.tokens={3 * STEP}")
    run = Pretence(config)
    run.fit()
    assert run.of("session", "forget moments", "step", "validate") == [
        ("session", 0),
        ("step", 1),
        ("step", 2),
        "validate",
        "forget moments",
        ("session", 2),
        ("step", 3),
        "validate",
    ]


def test_a_second_run_that_is_fine_is_what_counts(recipe):
    run = Pretence(recipe("train.max_steps=3"), results={2: [NAN]})
    run.fit()
    assert run.of("bad", "step") == [("step", 1), ("bad", 2, "applied the second run"), ("step", 2), ("step", 3)]
    assert run.trainer.state.bad_steps == 0


def test_a_bad_step_is_skipped_and_its_samples_are_used_up(recipe):
    run = Pretence(recipe("train.max_steps=3"), results={2: [NAN, NAN]}, on_nonfinite="skip")
    run.fit()
    assert run.of("bad", "step") == [("step", 1), ("bad", 2, "skip"), ("step", 3)]
    state = run.trainer.state
    assert (state.step, state.consumed_samples, state.bad_steps, state.skipped) == (3, 24, 1, [])
    assert len(run.of("apply")) == 2


def test_rolled_back_it_steps_over_the_samples(recipe):
    run = Pretence(recipe("train.max_steps=5"), results={4: [NAN, NAN]}, on_nonfinite="rollback")
    run.fit()
    assert run.of("step", "roll back", "resume", "save") == [
        ("step", 1),
        ("step", 2),
        ("save", 2),
        ("step", 3),
        ("roll back", 2),
        ("resume", 2),
        ("step", 3),
        ("step", 4),
        ("save", 4),
        ("step", 5),
        ("save", 5),
    ]
    assert run.trainer.state.skipped == [(24, 32)] and run.trainer.state.bad_steps == 1


def test_rolled_back_before_there_is_a_checkpoint(recipe):
    run = Pretence(recipe(), results={1: [NAN, NAN]}, on_nonfinite="rollback")
    with pytest.raises(RunError, match="step 1: lm_loss = nan is not finite; there is no checkpoint to go back to"):
        run.fit()


def test_stopped_by_a_bad_step_it_names_the_last_good_checkpoint(recipe):
    run = Pretence(recipe(), results={4: [NAN, NAN]})
    with pytest.raises(RunError, match=r"step 4: lm_loss = nan(.|\n)*the last checkpoint \(step 2\) is good"):
        run.fit()
    assert run.done[-1] == "wait", "saves in flight are seen to their end before"


def test_a_run_of_bad_steps_ends(recipe):
    results = {step: [NAN, NAN] for step in range(2, 9)}
    run = Pretence(recipe(), results=results, on_nonfinite="skip", max_bad_steps=3)
    with pytest.raises(RunError, match=r"step 5, the 4th bad step of this run \(resilience.max_bad_steps = 3\)"):
        run.fit()
