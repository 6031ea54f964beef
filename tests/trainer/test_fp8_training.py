"""8-bit training on the torch backend: near bf16 in every layout, the same in every layout, and resumed bit for bit."""

import pytest

from tests.trainer.test_parity import run_training

pytestmark = pytest.mark.slow

STEPS = 24
DELAYED = "precision.fp8={recipe: delayed, amax_history_len: 8}"
TENSORWISE = "precision.fp8={recipe: tensorwise}"
MODEL = ["model.hidden_size=64", "model.ffn_hidden_size=128", "schedule.lr=3e-3"]
LAYOUTS = {
    "dp2": (2, []),
    "tp2_sp": (2, ["parallel.tp_size=2", "parallel.sequence_parallel=true"]),
    "pp2": (2, ["parallel.pp_size=2"]),
    "cp2": (2, ["parallel.cp_size=2"]),
    "tp2_pp2_vpp2": (4, ["parallel.tp_size=2", "parallel.pp_size=2", "parallel.vpp_size=2"]),
}


@pytest.fixture
def trained(ranks, recipe, tmp_path):
    """`trained(world_size, run folder, "key=value", ...)`: (lm_loss, grad_norm) of every step, then of validation."""
    from megatron_sky.config import dump_config

    def run(world_size: int, name: str, *overrides: str) -> list[tuple[float, float]]:
        config = recipe(f"train.run_dir={tmp_path / name}", *MODEL, *overrides)
        return ranks(world_size, run_training, dump_config(config))[0]

    return run


@pytest.fixture(scope="module")
def one_process():
    """What one process gave, by name: the runs that the layouts are held against."""
    return {}


@pytest.mark.parametrize(
    ("settings", "name"),
    [(DELAYED, name) for name in ("one", *LAYOUTS)] + [(TENSORWISE, "one"), (TENSORWISE, "tp2_sp")],
)
def test_the_curve_ends_where_bf16s_does(settings, name, trained, one_process):
    common = ["precision.dtype=bf16", f"train.max_steps={STEPS}"]
    if "bf16" not in one_process:
        one_process["bf16"] = trained(1, "bf16", *common)
    wide = one_process["bf16"]
    world_size, overrides = LAYOUTS.get(name, (1, []))
    narrow = trained(world_size, "fp8", settings, *common, *overrides)
    assert narrow != wide
    assert wide[-1][0] < wide[0][0] - 1, "the reference itself must learn"
    for (loss, _), (loss_wide, _) in zip(narrow[-6:], wide[-6:], strict=True):
        assert abs(loss - loss_wide) <= 0.01 * loss_wide


@pytest.mark.parametrize(("settings", "name"), [(DELAYED, name) for name in LAYOUTS] + [(TENSORWISE, "tp2_sp")])
def test_a_layout_changes_nothing_beyond_rounding(settings, name, trained, one_process):
    """In fp32 outside the 8-bit products, what differs is which numbers fall on the other side of a rounding."""
    common = [settings, "train.max_steps=6"]
    if settings not in one_process:
        one_process[settings] = trained(1, "one", *common)
    world_size, overrides = LAYOUTS[name]
    got, want = trained(world_size, name, *common, *overrides), one_process[settings]
    off = [abs(loss - loss_one) for (loss, _), (loss_one, _) in zip(got, want, strict=True)]
    assert max(off[:3]) <= 1e-5
    assert max(off) <= 2e-3


@pytest.mark.parametrize("first_last", ["true", "false"])
def test_a_resumed_run_is_the_uninterrupted_one(first_last, trained):
    settings = f"precision.fp8={{recipe: delayed, amax_history_len: 3, first_last_layers_bf16: {first_last}}}"
    common = [settings, "precision.dtype=bf16"]
    whole = trained(1, "whole", *common, "train.max_steps=8")
    trained(1, "halves", *common, "train.max_steps=4")
    assert trained(1, "halves", *common, "train.max_steps=8")[-5:] == whole[-5:]


def test_the_history_moves_to_another_layout(trained):
    whole = trained(1, "whole", DELAYED, "train.max_steps=6")
    tp2 = ["parallel.tp_size=2", "parallel.sequence_parallel=true"]
    trained(2, "halves", DELAYED, "train.max_steps=3", *tp2)
    got = trained(2, "halves", DELAYED, "train.max_steps=6", "parallel.pp_size=2")
    assert [loss for loss, _ in got[-4:]] == pytest.approx([loss for loss, _ in whole[-4:]], abs=2e-3)
    # Without the history the first step's numbers would be scaled by themselves, which shows at once.
    assert abs(got[3][0] - whole[3][0]) <= 1e-5


def test_a_run_may_go_to_8_bits_and_back(trained):
    trained(1, "run", "train.max_steps=2")
    trained(1, "run", DELAYED, "train.max_steps=4")
    trained(1, "run", "precision.fp8={recipe: delayed, amax_history_len: 5}", "train.max_steps=6")
    losses = [loss for loss, _ in trained(1, "run", "train.max_steps=8")]
    assert len(losses) == 9 and losses[-1] < losses[0]
