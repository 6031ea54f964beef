"""Sessions: one run through several mixtures and schedules, in one job or in several, and what is refused or told."""

from pathlib import Path

import pytest

from megatron_sky.config import dump_config, load_config
from megatron_sky.errors import ConfigError
from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.trainer.sessions import find_notes, sessions_of
from tests.trainer.test_parity import run_training

STEP = 8 * 32  # tokens
SESSIONS = [
    "train.tokens=null",
    "schedule=null",
    "sessions=["
    f"{{name: one, tokens: {3 * STEP}, schedule: {{lr: 1e-2, min_lr: 1e-3, warmup_tokens: {STEP}}}}},"
    f"{{name: two, tokens: {2 * STEP}, schedule: {{style: constant, lr: 1e-3}}, weights: {{zh_web: 1.0}}}},"
    f"{{name: three, tokens: {2 * STEP}, schedule: {{style: constant, lr: 1e-3}}, start: weights,"
    " weights: {en_web: {start: 0.9, end: 0.2}, zh_web: {start: 0.1, end: 0.8}}}]",
]


@pytest.fixture
def staged(recipe, tmp_path):
    """`staged("key=value", ...)`: the tiny recipe in three sessions of 3, 2 and 2 steps."""

    def make(*overrides: str):
        import yaml

        base = yaml.safe_load(dump_config(recipe()))
        del base["schedule"], base["train"]["tokens"]
        path = tmp_path / "staged.yaml"
        path.write_text(yaml.safe_dump(base))
        return load_config([path], [SESSIONS[2], *overrides])

    return make


def history(config):
    metrics = read_metrics(config.train.run_dir)
    return [(record.step, record.lm_loss, record.grad_norm, record.lr) for record in metrics.train]


def events(config, name: str) -> list[dict]:
    return [event.fields for event in read_metrics(config.train.run_dir).events if event.event == name]


def test_one_job_goes_through_all(ranks, staged):
    config = staged("train.micro_batch_size=4")
    ranks(1, run_training, dump_config(config))
    lrs = [lr for _, _, _, lr in history(config)]
    assert lrs == pytest.approx([0.0, 1e-2, 5.5e-3, *[1e-3] * 4])
    assert [each["session"] for each in events(config, "session")] == ["one", "two", "three"]
    assert sorted(each.name for each in (Path(config.train.run_dir) / "checkpoints").iterdir()) == [
        "step_0000003",
        "step_0000005",
        "step_0000007",
    ]
    given = {each["name"]: each["tokens"] for each in events(config, "sources")[1]["sources"]}
    first = {each["name"]: each["tokens"] for each in events(config, "sources")[0]["sources"]}
    assert given["en_web"] == first["en_web"] and given["zh_web"] == first["zh_web"] + 2 * STEP
    validated = {record.step for record in read_metrics(config.train.run_dir).validation}
    assert {3, 5, 7} <= validated


@pytest.mark.slow
def test_a_job_for_each_session_gives_the_same(ranks, staged, tmp_path):
    whole = staged(f"train.run_dir={tmp_path}/whole", "train.micro_batch_size=4")
    ranks(1, run_training, dump_config(whole))
    for name in ("one", "two", "three"):
        part = staged(f"train.run_dir={tmp_path}/parts", "train.micro_batch_size=4", f"train.session={name}")
        ranks(1, run_training, dump_config(part))
    assert history(part) == history(whole)


@pytest.mark.slow
def test_a_session_begun_from_weights_elsewhere_gives_the_same(ranks, staged, tmp_path):
    whole = staged(f"train.run_dir={tmp_path}/whole")
    ranks(2, run_training, dump_config(whole))
    alone = staged(
        f"train.run_dir={tmp_path}/alone",
        "train.session=three",
        f"checkpoint.init_from={tmp_path}/whole/checkpoints/step_0000005",
    )
    ranks(2, run_training, dump_config(alone))
    assert history(alone) == history(whole)[5:]


@pytest.mark.slow
def test_a_stop_in_the_middle_of_each_session_changes_nothing(ranks, staged, tmp_path):
    whole = staged(f"train.run_dir={tmp_path}/whole")
    ranks(2, run_training, dump_config(whole))
    for steps in (1, 4, 6, 7):
        part = staged(f"train.run_dir={tmp_path}/parts", f"train.max_steps={steps}")
        ranks(2, run_training, dump_config(part))
    assert history(part) == history(whole)


def test_a_session_out_of_its_turn_is_refused(ranks, staged):
    config = staged("train.session=two")
    with pytest.raises(Exception, match="begins at sample 24, and the run has come to 0"):
        ranks(1, run_training, dump_config(config))


def test_a_session_can_be_changed_by_its_name(staged):
    config = staged("sessions.two.schedule.lr=2e-3", "sessions.two.weights.en_web=3.0")
    assert config.sessions[1].schedule.lr == 2e-3 and config.sessions[1].weights == {"zh_web": 1.0, "en_web": 3.0}
    notes = find_notes(sessions_of(config), config)
    assert any("jumps from 0.001 to 0.002 at the hand-over from one to two" in note for note in notes)
    assert any("from two to three" in note for note in notes) and len(notes) == 2


def test_a_resolved_recipe_loads_back(staged, tmp_path):
    config = staged()
    assert config.train.tokens == 7 * STEP and config.schedule == config.sessions[0].schedule
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config([path]) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.lr=1e-4"], "schedule: has no effect, every session has its own"),
        (["train.tokens=5000"], "train.tokens = 5,000: must be the sum of the sessions, 1,792"),
        (["train.session=four"], "train.session = 'four': the sessions are one, two, three"),
        (["sessions.two.name=one"], "the name 'one' is given twice"),
        (["sessions.two.weights.books=1.0"], "sessions.two.weights: books is no source of data.train"),
        (["sessions.four.tokens=3"], "sessions.four is not a section"),
        (["sessions.two.tokens=0"], "sessions.1.tokens"),
        (["data.sampling=megatron"], "data.sampling: megatron has one blend"),
    ],
)
def test_contradictions_are_named(staged, overrides, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        staged(*overrides)


def test_a_session_needs_a_step_of_its_own(staged):
    with pytest.raises(ConfigError, match=r"sessions\.two\.tokens.*less than one step"):
        sessions_of(staged(f"sessions.one.tokens={2 * STEP + 1}", "sessions.two.tokens=100"))


def test_budgets_between_steps_and_marks_beyond_the_end_are_told(staged):
    config = staged(f"sessions.one.tokens={2 * STEP + 100}", "checkpoint.release_marks=[500, 100k]")
    notes = find_notes(sessions_of(config), config)
    assert any(
        f"sessions.one: {2 * STEP + 100} tokens is no whole number of steps; it ends at {3 * STEP}" in n for n in notes
    )
    assert any("release_marks: 100.00k lies beyond the run's end" in note for note in notes)
