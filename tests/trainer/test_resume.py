"""Where a job begins, and how far it has to go."""

from pathlib import Path

import pytest

from megatron_sky.config import dump_config, load_config
from megatron_sky.config.schema import CheckpointConfig
from megatron_sky.errors import CheckpointError, ConfigError
from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.trainer.preflight import preflight
from megatron_sky.trainer.resume import Remaining, check_start, find_start, remaining_steps, take_up
from megatron_sky.trainer.sessions import sessions_of
from megatron_sky.trainer.state import TrainState
from tests.trainer.test_parity import run_training

STEP = 8 * 32  # tokens


def found_start(info, config_text: str, folder: str):
    """(state, name of the own checkpoint, name of the weights') of a job's start, or what it was refused with."""
    from megatron_sky.distributed.context import open_context

    path = Path(folder, f"rank_{info.rank}.yaml")
    path.write_text(config_text)
    config = load_config([path])
    seen = preflight(config, info.world_size, leads=False).raise_errors()
    with open_context(config.parallel, info) as context:
        try:
            start = find_start(
                config.checkpoint,
                model=config.model,
                parallel=config.parallel,
                precision=config.precision,
                sessions=seen.sessions,
                data=seen.data,
                run_dir=Path(config.train.run_dir),
                context=context,
                sources={},
                allow_changed_files=False,
            )
        except (CheckpointError, ConfigError) as error:
            return str(error)
    return start.state, *(each and each.folder.name for each in (start.own, start.weights))


@pytest.fixture
def start(ranks, tmp_path):
    """`start(config, world_size=1)`: what every rank finds."""
    return lambda config, world_size=1: ranks(world_size, found_start, dump_config(config), str(tmp_path))


@pytest.fixture
def trained(ranks, recipe):
    """A run of two steps with a checkpoint after each."""
    config = recipe("train.max_steps=2", "checkpoint.interval=1 steps")
    ranks(1, run_training, dump_config(config))
    return config


def test_a_new_run_begins_at_the_first_token(start, recipe):
    assert start(recipe(), 2) == [(TrainState(), None, None)] * 2


def test_a_run_goes_on_from_its_last_checkpoint(start, trained):
    ((state, own, weights),) = start(trained)
    assert (state.step, state.consumed_samples, own, weights) == (2, 16, "step_0000002", None)


def test_its_own_checkpoint_counts_more_than_other_weights(start, trained, recipe):
    ((_, own, weights),) = start(recipe(f"checkpoint.init_from={trained.train.run_dir}/checkpoints/step_0000001"))
    assert (own, weights) == ("step_0000002", None)


def test_weights_of_another_run_begin_a_new_one(start, trained, recipe, tmp_path):
    other = recipe(f"train.run_dir={tmp_path}/other", f"checkpoint.init_from={trained.train.run_dir}")
    for state, own, weights in start(other, 2):
        assert (state, own, weights) == (TrainState(), None, "step_0000002")


def test_another_model_or_order_is_refused_alike_on_all_ranks(start, trained, recipe):
    for override, message in (("model.num_layers=2", "holds another model"), ("data.seed=5", "data.seed")):
        found = start(recipe(override), 2)
        assert found[0] == found[1] and message in found[0]


def test_the_quick_look_before_a_start(trained, recipe, tmp_path):
    run_dir = Path(trained.train.run_dir)
    arguments = {"model": trained.model, "warn": pytest.fail}
    check_start(CheckpointConfig(), run_dir=run_dir, **arguments)
    check_start(CheckpointConfig(), run_dir=tmp_path / "nothing", **arguments)
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        check_start(CheckpointConfig(init_from="/nowhere"), run_dir=tmp_path / "nothing", **arguments)
    with pytest.raises(CheckpointError, match="another model"):
        check_start(
            CheckpointConfig(init_from=str(run_dir)),
            run_dir=tmp_path / "nothing",
            model=recipe("model.num_layers=2").model,
            warn=pytest.fail,
        )


def test_a_changed_mixture_is_taken_up_and_said(recipe):
    before, after = (preflight(recipe(*change), 1).data for change in ([], ["data.train.0.weight=0.2"]))
    checkpoint = _described(recipe(), before)
    assert not take_up(checkpoint, preflight(recipe(), 1).data).change
    taken = take_up(checkpoint, after)
    assert taken.change == "from where they stopped go on en_web, zh_web" and taken.state.consumed_samples == 16


def test_a_renamed_source_is_named_with_what_begins_anew(recipe):
    before, after = (preflight(recipe(*change), 1).data for change in ([], ["data.train.0.name=web"]))
    given = 10 * STEP // 8
    assert take_up(_described(recipe(), before), after).change.split("; ") == [
        f"en_web has left after {given} tokens",
        "web begins at its first token",
        "where web is only en_web under a new name, restore the old one: its texts would be repeated",
        "from where they stopped go on zh_web",
    ]


def _described(config, data):
    from megatron_sky.checkpoint.description import CheckpointDescription

    return CheckpointDescription(
        Path("x"), config, TrainState(2, 16, 2 * STEP).to_dict(), data.plan.fingerprint(), "one process"
    )


@pytest.mark.parametrize(
    ("overrides", "state", "remaining"),
    [
        ([], TrainState(), Remaining(40, 40 * STEP)),
        ([], TrainState(38, 38 * 8, 38 * STEP), Remaining(2, 40 * STEP)),
        ([], TrainState(40, 40 * 8, 40 * STEP), Remaining(0, 40 * STEP)),
        (["train.max_steps=5"], TrainState(3, 24, 3 * STEP), Remaining(2, 5 * STEP)),
        (["train.max_steps=5"], TrainState(7, 56, 7 * STEP), Remaining(0, 7 * STEP)),
        ([f"train.tokens={10 * STEP + 1}"], TrainState(), Remaining(11, 11 * STEP)),
    ],
)
def test_what_is_left(overrides, state, remaining, recipe):
    config = recipe(*overrides)
    assert remaining_steps(config.train, seq_length=32, sessions=sessions_of(config), state=state) == remaining


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_run_goes_on_with_other_learning_rates(is_sharded, ranks, recipe):
    """From megatron-core 0.19 on an optimizer's groups are found by their highest and lowest rate."""
    given = [f"parallel.distributed_optimizer={is_sharded}", "schedule.style=constant", "schedule.warmup_tokens=0"]
    for step, (lr, min_lr) in enumerate((("1e-3", "1e-4"), ("5e-4", "2e-4")), 1):
        config = recipe(*given, f"schedule.lr={lr}", f"schedule.min_lr={min_lr}", f"train.max_steps={step}")
        ranks(1, run_training, dump_config(config))
    assert [record.lr for record in read_metrics(config.train.run_dir).train] == [1e-3, 5e-4]
