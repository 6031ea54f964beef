"""Runs that Megatron-LM's classes saved, in each form of the optimizer's state, taken over number for number."""

import pytest

from megatron_sky.checkpoint.description import read_description
from megatron_sky.checkpoint.reader.lazy import same_bits
from megatron_sky.convert.megatron.take_over import take_over
from megatron_sky.convert.training_state import KEYS, native_training
from megatron_sky.errors import CheckpointError
from tests.conftest import VOCAB_SIZE
from tests.convert.megatron import runs
from tests.slow import slow_except

WORLD = {"one": 1, "tp2": 2, "pp2": 2, "vpp2": 2, "tp2_pp2": 4, "gpt2": 2, "tied": 2, "bf16": 2}
WORLD |= {"unsharded": 1, "unsharded_bf16": 2}
CASES = [
    ("tp2", "dp_reshardable"),
    ("tp2", "fully_reshardable"),
    ("tp2", "dp_zero_gather_scatter"),
    ("vpp2", "dp_reshardable"),
    ("vpp2", "torch"),
    ("gpt2", "dp_reshardable"),
    ("gpt2", "torch"),
    ("bf16", "dp_reshardable"),
    ("bf16", "torch"),
    ("unsharded", "unsharded"),
    ("unsharded", "torch"),
    ("unsharded_bf16", "unsharded"),
    ("unsharded_bf16", "torch"),
    ("tp2_pp2", "dp_reshardable"),
    ("tp2_pp2", "torch"),
]
QUICK = [("tp2", "dp_reshardable"), ("vpp2", "torch"), ("unsharded_bf16", "torch"), ("unsharded", "unsharded")]


def assert_same_state(native, other) -> None:
    """Weights, masters and moments of two native checkpoints, padding rows included, bit by bit; and their progress."""
    a, _ = native_training(native)
    b, _ = native_training(other)
    for name, tensor in a.weights.items():
        assert same_bits(tensor.load(), b.weights[name].load()), name
    for key in KEYS:
        assert a.moments[key].keys() == b.moments[key].keys()
        for name, tensor in a.moments[key].items():
            assert same_bits(tensor.load(), b.moments[key][name].load()), f"{key} of {name}"
    assert (a.step, a.optimizer_step, a.consumed_samples) == (b.step, b.optimizer_step, b.consumed_samples)
    assert a.is_sharded == b.is_sharded


@pytest.mark.parametrize("case", slow_except(CASES, *QUICK), ids="-".join)
def test_every_form_is_taken_over_bit_by_bit(case, native, ranks, tmp_path):
    kind, form = case
    ranks(WORLD[kind], runs.save, str(native(kind)), str(tmp_path / "theirs"), form)
    done = take_over(tmp_path / "theirs", tmp_path / "run", vocab_size=VOCAB_SIZE)
    assert done.folder == tmp_path / "run" / "checkpoints" / "step_0000002"
    assert_same_state(native(kind), done.folder)


@pytest.mark.parametrize("form", slow_except(["dp_reshardable", "torch"], "dp_reshardable"))
def test_shards_of_several_data_parallel_ranks(form, native, ranks, tmp_path):
    ranks(2, runs.save, str(native("one")), str(tmp_path / "theirs"), form, {})
    assert_same_state(native("one"), take_over(tmp_path / "theirs", tmp_path / "run", vocab_size=VOCAB_SIZE).folder)


@pytest.fixture(scope="module")
def theirs(native, ranks, tmp_path_factory):
    """`theirs(**args)`: the smallest run with other args, in the distributed optimizer's whole form."""

    def save(**args):
        folder = tmp_path_factory.mktemp("theirs")
        ranks(1, runs.save, str(native("one")), str(folder), "fully_reshardable", None, args)
        return folder

    return save


def test_progress_and_order_are_those_of_the_args(theirs, tmp_path):
    done = take_over(theirs(), tmp_path / "run", vocab_size=VOCAB_SIZE)
    saved = read_description(done.folder)
    assert saved.is_converted
    assert saved.progress["step"] == 2 and saved.progress["consumed_samples"] == runs.SAMPLES
    assert saved.progress["consumed_tokens"] == runs.SAMPLES * saved.config.model.seq_length
    assert saved.data == {"sampling": "megatron", "seed": 1234, "seq_length": saved.config.model.seq_length}


@pytest.mark.parametrize(
    "args,message",
    [
        ({"optimizer": "sgd"}, r"args.optimizer = 'sgd'.*fix: convert without --with-optimizer"),
        ({"optimizer": "dist_muon"}, "args.optimizer = 'dist_muon'"),
        ({"optimizer": "lion"}, "args.optimizer = 'lion'"),
        ({"decoupled_weight_decay": False}, "L2 regularisation"),
        ({"num_experts": 8}, "args.num_experts = 8"),
        ({"decoupled_lr": 1e-4}, "a learning rate of their own"),
    ],
)
def test_what_another_optimizer_trained_is_refused(args, message, theirs, tmp_path):
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        take_over(theirs(**args), tmp_path / "run", vocab_size=VOCAB_SIZE)
    assert not (tmp_path / "run").exists()


def test_rows_that_the_recipe_would_pad_otherwise_are_refused(theirs, tmp_path):
    with pytest.raises(CheckpointError, match="its embedding has 768 rows, which are trained on"):
        take_over(theirs(), tmp_path / "run", vocab_size=VOCAB_SIZE, vocab_multiple=100)
    assert not (tmp_path / "run" / "checkpoints" / "step_0000002").exists()


def test_a_run_folder_with_another_checkpoint_is_refused(theirs, native, tmp_path):
    run_dir = native("tp2").parent.parent
    folder = theirs()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_0000009").mkdir()
    (tmp_path / "run" / "checkpoints" / "step_0000009" / "manifest.json").touch()
    assert run_dir.is_dir()
    with pytest.raises(CheckpointError, match="holds step_0000009 already"):
        take_over(folder, tmp_path / "run", vocab_size=VOCAB_SIZE)


def test_a_second_run_finds_all_done(theirs, tmp_path):
    folder = theirs()
    first = take_over(folder, tmp_path / "run", vocab_size=VOCAB_SIZE)
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    again = take_over(folder, tmp_path / "run", vocab_size=VOCAB_SIZE)
    assert again.files.keys() == first.files.keys()
    assert (first.folder / "manifest.json").stat().st_mtime_ns == before
