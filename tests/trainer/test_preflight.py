"""What is looked at before a run starts: all that is wrong at once, each thing once."""

import os
import shutil
from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.errors import CheckpointError, ConfigError, DataError, Problem, RunError
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, load_tokenizer
from megatron_sky.trainer import run_folder
from megatron_sky.trainer.dry_run import print_plan
from megatron_sky.trainer.preflight import PreflightError, combined, group_by_fix, preflight
from tests.trainer.test_parity import run_training


def test_a_good_recipe_gives_what_the_run_needs_and_makes_nothing(recipe):
    config = recipe()
    seen = preflight(config, 2).raise_errors()
    assert [source.meta.num_tokens for source in seen.sources] == [s.tokens.num_tokens for s in seen.sources]
    assert seen.validation.keys() == {"en_web"} and seen.sessions.last.end_token == config.train.tokens
    assert seen.data.sources is seen.sources and len(seen.data.read([0, 1]).tokens) == 2
    assert any("checkpoint.interval is not set" in note for note in seen.notes)
    assert not Path(config.train.run_dir).exists()


def test_all_that_is_wrong_is_told_at_once(recipe, tmp_path):
    """Rules, references, both tokenizers, a source, a set, the run folder and the checkpoint to start from."""
    (tmp_path / "file").write_text("")
    config = recipe(
        "parallel.sequence_parallel=true",
        "schedule.min_lr=1",
        "validation.references=/nowhere/references.csv",
        "validation.reference_tokenizer=/nowhere/reference.model",
        "tokenizer.path=/nowhere/own.model",
        "data.train.1.path=/nowhere/source",
        "validation.sets.0.path=/nowhere/set",
        f"train.run_dir={tmp_path}/file/run",
        "checkpoint.init_from=/nowhere/weights",
    )
    with pytest.raises(PreflightError) as caught:
        preflight(config, 1).raise_errors()
    text = str(caught.value)
    for part in (
        "parallel.sequence_parallel = True: needs parallel.tp_size above 1",
        "schedule.min_lr = 1.0",
        "validation.references = '/nowhere/references.csv'",
        "/nowhere/reference.model",
        "/nowhere/own.model",
        "/nowhere/source.bin does not exist",
        "/nowhere/set.bin does not exist",
        "train.run_dir = ",
        "/nowhere/weights: is neither a checkpoint nor a run folder",
    ):
        assert text.count(part) == 1, part
    assert text.startswith("the run can't start, for 9 reasons:\n  1. ")
    assert text.count("give the path prefix of the pair") == 1, "two files, one fix"
    assert caught.value.exit_code == ConfigError.exit_code


def test_what_a_wrong_budget_would_say_of_sessions_is_left_out(recipe):
    with pytest.raises(ConfigError) as caught:
        preflight(recipe("train.tokens=0", "schedule.warmup_tokens=0", "train.global_batch_size=3"), 2).raise_errors()
    assert {problem.where for problem in caught.value.problems} == {"train.tokens", "train.global_batch_size"}


def test_a_wrong_layout_does_not_hide_a_mixture_that_can_not_be(recipe):
    with pytest.raises(ConfigError) as caught:
        preflight(recipe("train.global_batch_size=3", "train.tokens=100M"), 2).raise_errors()
    assert "train.global_batch_size" in str(caught.value) and "max_epochs" in str(caught.value)


def test_weights_are_reckoned_with_where_files_are_missing(recipe):
    config = recipe("data.train.0.path=/nowhere/a", "data.train.0.weight=0", "data.train.1.weight=0")
    with pytest.raises(PreflightError, match=r"all weights are 0(.|\n)*/nowhere/a\.bin"):
        preflight(config, 1).raise_errors()


def test_problems_of_the_machine_are_among_them_once(recipe):
    config = recipe("model.backend=torch", "kernels.rope_fusion=true", "schedule.min_lr=1")
    (rule,) = [p for p in preflight(config, 1).errors[0].problems if p.where == "kernels.rope_fusion"]
    with pytest.raises(ConfigError) as caught:
        preflight(config, 1, machine_problems=lambda config: [rule]).raise_errors()
    assert [problem.where for problem in caught.value.problems] == ["kernels.rope_fusion", "schedule.min_lr"]


def test_a_machine_that_can_not_be_asked_is_told_too(recipe):
    def refuse(config):
        raise ConfigError(Problem("model.backend", "can't be used here", "set it to torch"))

    with pytest.raises(ConfigError, match=r"schedule\.min_lr(.|\n)*model\.backend|model\.backend(.|\n)*schedule"):
        preflight(recipe("schedule.min_lr=1"), 1, machine_problems=refuse).raise_errors()


def test_data_that_ends_its_documents_in_another_way_is_named(recipe, corpus, monkeypatch):
    config = recipe(f"tokenizer.path={corpus}/tokenizer.model")
    preflight(config, 1).raise_errors()
    ends_with = load_tokenizer(config.tokenizer.path).eod_id
    monkeypatch.setattr(SentencePieceTokenizer, "eod_id", 7)
    with pytest.raises(DataError, match=f"end with id {ends_with}, the recipe's tokenizer ends them with 7"):
        preflight(config, 1).raise_errors()


def test_a_set_that_is_trained_on_is_a_note(recipe, corpus):
    seen = preflight(recipe(f"validation.sets=[{{name: seen, path: {corpus}/tokens/train/zh_web}}]"), 1)
    (note,) = [note for note in seen.notes if "validation.sets[seen]" in note]
    assert "is also in the training source zh_web: its loss is no test" in note


def test_only_who_leads_looks_at_the_lock(recipe):
    config = recipe()
    run_dir = Path(config.train.run_dir)
    run_folder.prepare(run_dir)
    with run_folder.locked(run_dir, print):
        with pytest.raises(RunError, match=f"pid {os.getpid()}"):
            preflight(config, 2).raise_errors()
        preflight(config, 2, leads=False).raise_errors()


def test_the_checkpoint_to_start_from_is_looked_at(ranks, recipe, tmp_path, capsys):
    config = recipe("train.max_steps=2", "checkpoint.interval=1 steps")
    ranks(1, run_training, dump_config(config))
    other = recipe("model.num_layers=2", "data.train.0.path=/nowhere/a")
    with pytest.raises(PreflightError, match=r"model\.num_layers: 4 in the checkpoint, 2 in the recipe") as caught:
        preflight(other, 1).raise_errors()
    assert [type(error) for error in caught.value.errors] == [DataError, CheckpointError]
    assert caught.value.exit_code == DataError.exit_code
    newest = Path(config.train.run_dir) / "checkpoints/step_0000002"
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(shard, 10)
    print_plan(config, 1)
    assert capsys.readouterr().out.count("skipping a damaged checkpoint") == 1
    shutil.rmtree(newest.with_name("step_0000001"))
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
        preflight(config, 1).raise_errors()


@pytest.mark.parametrize("sampling", ["plan", "megatron"])
def test_training_pairs_are_opened_once_a_rank(sampling, ranks, recipe):
    config = recipe("train.max_steps=1", f"data.sampling={sampling}", "train.micro_batch_size=4")
    opened = ranks(2, count_opened, dump_config(config))
    for counts in opened:
        assert counts and set(counts.values()) == {1}, counts


def count_opened(info, config_text: str) -> dict[str, int]:
    """How often a run opens each pair with our reader (megatron-core's own order opens its own besides)."""
    from megatron_sky.data.tokens.indexed import IndexedTokens

    counts: dict[str, int] = {}
    init = IndexedTokens.__init__

    def counted(self, prefix):
        counts[str(prefix)] = counts.get(str(prefix), 0) + 1
        init(self, prefix)

    IndexedTokens.__init__ = counted
    try:
        run_training(info, config_text)
    finally:
        IndexedTokens.__init__ = init
    return counts


def test_errors_of_one_kind_stay_of_that_kind():
    one, two = ConfigError(Problem("a.b", "is wrong", "set it")), ConfigError(Problem("a.c", "is wrong", "set it"))
    assert combined([one]) is one
    assert [problem.where for problem in combined([one, two, one]).problems] == ["a.b", "a.c"]
    data = combined([DataError("x: is torn\n  fix: mend it"), DataError("y: is torn\n  fix: mend it")])
    assert type(data) is DataError and str(data) == "x: is torn\ny: is torn\n  fix: mend it"
    mixed = combined([RunError("full"), data, CheckpointError("gone")])
    assert type(mixed) is PreflightError and mixed.exit_code == DataError.exit_code


def test_what_one_fix_mends_stands_together():
    texts = ["a\n  fix: x", "b\n      fix: y", "c\n  fix: x", "d"]
    assert group_by_fix(texts) == ["a\nc\n  fix: x", "b\n  fix: y", "d"]
