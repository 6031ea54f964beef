"""Every key of a recipe, edited between two jobs of a run, is applied, refused, or told to have no effect."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from megatron_sky.config.schema import Config
from megatron_sky.config.sections.base import Section, kinds_in
from megatron_sky.trainer.changed_keys import KEPT, find_changes
from tests.faults.harness import Ended
from tests.faults.test_faults import hurt, log_of, losses, run_dir  # noqa: F401 (fixtures)
from tests.slow import slow_except


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key that holds a value, those of lists without their numbers."""
    for name, field in section.model_fields.items():
        parts = [kind for kind in kinds_in(field.annotation) if isinstance(kind, type) and issubclass(kind, Section)]
        for part in parts:
            yield from leaves(part, f"{prefix}{name}.")
        if not parts:
            yield prefix + name


@dataclass(frozen=True)
class Edit:
    """What is edited for a key, what the run had `before` beside the usual, and what comes of it.

    `code`: the exit code of the resumed run, whose message says `names` or else the key. `moves`: whether its losses
    become others.
    """

    change: str
    code: int = 0
    moves: bool = False
    before: str = ""
    names: str = ""


def refused(change: str, code: int = 4, before: str = "", names: str = "") -> Edit:
    return Edit(change, code, before=before, names=names)


def moves(change: str, before: str = "") -> Edit:
    return Edit(change, moves=True, before=before)


FP8, FP16, ROPE = "precision.fp8.recipe=delayed", "precision.dtype=fp16", "model.rope_scaling={kind: linear, factor: 2}"
RAMP = "train.batch_rampup={start_size: 2, increment: 2, tokens: 4096}"
WSD = "schedule.style=wsd schedule.wsd_decay_tokens=9728"
WANDB = "monitor.wandb={project: p}"
MEGATRON = "data.sampling=megatron"
TWO = (
    "sessions=[{name: a, tokens: 768}, {name: b, tokens: 4096, weights: {en_web: 1.0}, start: weights}] "
    "train.tokens=4864"
)
EDITS = {
    "model.preset": Edit("model.preset=tiny"),
    "model.vocab_size": refused("model.vocab_size=701"),
    "model.hidden_size": refused("model.hidden_size=64"),
    "model.ffn_hidden_size": refused("model.ffn_hidden_size=128"),
    "model.num_layers": refused("model.num_layers=2"),
    "model.num_attention_heads": refused("model.num_attention_heads=2"),
    "model.num_query_groups": refused("model.num_query_groups=4", names="query_groups"),
    "model.kv_channels": refused("model.kv_channels=16", names="head_size"),
    "model.seq_length": refused("model.seq_length=16", 2),
    "model.position_embedding": refused("model.position_embedding=learned_absolute"),
    "model.rotary_base": refused("model.rotary_base=500"),
    "model.rope_scaling.kind": refused("model.rope_scaling.kind=llama3", before=ROPE, names="model.rope_scaling"),
    "model.rope_scaling.factor": refused("model.rope_scaling.factor=4", before=ROPE, names="model.rope_scaling"),
    "model.normalization": refused("model.normalization=layernorm"),
    "model.norm_epsilon": refused("model.norm_epsilon=1e-3"),
    "model.activation": refused("model.activation=gelu"),
    "model.add_bias_linear": refused("model.add_bias_linear=true"),
    "model.tie_embeddings": refused("model.tie_embeddings=true"),
    "model.hidden_dropout": moves("model.hidden_dropout=0.1"),
    "model.attention_dropout": moves("model.attention_dropout=0.1"),
    "model.init_std": Edit("model.init_std=0.5"),
    "model.vocab_multiple": refused("model.vocab_multiple=512", names="padded_vocab_size"),
    "model.backend": Edit("model.backend=torch"),
    "tokenizer.path": Edit("tokenizer.path=null"),
    "data.train.name": moves("data.train.0.name=other"),
    "data.train.path": refused("data.train.0.path={corpus}/tokens/train/zh_web", 3, names="data.train"),
    "data.train.weight": moves("data.train.0.weight=0.1"),
    "data.train.weight.start": moves("data.train.0.weight={start: 0, end: 0.1}"),
    "data.train.weight.end": moves("data.train.0.weight={start: 0.7, end: 0}"),
    "data.max_epochs": refused("data.max_epochs=0.001", 2),
    "data.seed": refused("data.seed=7", 2),
    "data.num_workers": Edit("data.num_workers=3"),
    "data.prefetch_batches": Edit("data.prefetch_batches=9"),
    "data.document_mask": moves("data.document_mask=true"),
    "data.mask_document_ends": moves("data.mask_document_ends=true"),
    "data.sampling": refused("data.sampling=megatron", 2),
    "data.megatron.split": refused("data.megatron.split=98,1,1", 2, before=MEGATRON),
    "data.megatron.weights": refused("data.megatron.weights=sizes", 2, before=MEGATRON),
    "data.megatron.num_samples": refused("data.megatron.num_samples=5000", 2, before=MEGATRON),
    "data.megatron.cache": Edit("data.megatron.cache=.", before=MEGATRON),
    "data.megatron.surplus": refused("data.megatron.surplus=0.1", 2, before=MEGATRON),
    "data.allow_changed_files": Edit("data.allow_changed_files=true"),
    "parallel.distributed_optimizer": refused("parallel.distributed_optimizer=false", 2),
    "parallel.overlap_grad_reduce": Edit("parallel.overlap_grad_reduce=true"),
    "parallel.overlap_param_gather": Edit("parallel.overlap_param_gather=true parallel.overlap_grad_reduce=true"),
    "parallel.grad_bucket_size": Edit("parallel.grad_bucket_size=1000 parallel.overlap_grad_reduce=true"),
    "parallel.overlap_p2p": Edit("parallel.overlap_p2p=false"),
    "precision.dtype": moves("precision.dtype=bf16"),
    "precision.fp8.recipe": moves("precision.fp8.recipe=tensorwise", before=FP8),
    "precision.fp8.format": moves("precision.fp8.format=e4m3", before=FP8),
    "precision.fp8.amax_history_len": moves("precision.fp8.amax_history_len=1", before=FP8),
    "precision.fp8.amax_compute_algo": moves(
        "precision.fp8.amax_compute_algo=most_recent", before=f"{FP8} schedule.lr=0.3"
    ),
    "precision.fp8.first_last_layers_bf16": moves("precision.fp8.first_last_layers_bf16=true", before=FP8),
    "precision.initial_loss_scale": Edit("precision.initial_loss_scale=8", before=FP16),
    "precision.grad_reduce_in_fp32": moves("precision.grad_reduce_in_fp32=false", before="precision.dtype=bf16"),
    "kernels.cross_entropy_fusion": Edit("kernels.cross_entropy_fusion=false"),
    "kernels.deterministic": Edit("kernels.deterministic=true"),
    "optimizer.weight_decay": moves("optimizer.weight_decay=9"),
    "optimizer.adam_beta1": moves("optimizer.adam_beta1=0.5"),
    "optimizer.adam_beta2": moves("optimizer.adam_beta2=0.5"),
    "optimizer.adam_eps": moves("optimizer.adam_eps=0.1"),
    "optimizer.clip_grad": moves("optimizer.clip_grad=0.01"),
    "schedule.style": moves("schedule.style=linear"),
    "schedule.lr": moves("schedule.lr=2e-2"),
    "schedule.min_lr": moves("schedule.min_lr=9e-3"),
    "schedule.warmup_tokens": moves("schedule.warmup_tokens=2048"),
    "schedule.warmup_start_lr": moves("schedule.warmup_start_lr=5e-3", before="schedule.warmup_tokens=2048"),
    "schedule.decay_tokens": moves("schedule.decay_tokens=2048"),
    "schedule.wsd_decay_tokens": moves("schedule.wsd_decay_tokens=9600", before=WSD),
    "schedule.wsd_decay_style": moves("schedule.wsd_decay_style=sqrt", before=WSD),
    "train.run_dir": Edit(""),  # as every test of these does: the folder is copied
    "train.tokens": moves("train.tokens=2048"),
    "train.global_batch_size": moves("train.global_batch_size=4"),
    "train.micro_batch_size": Edit("train.micro_batch_size=2"),
    "train.batch_rampup.start_size": moves("train.batch_rampup.start_size=4", before=RAMP),
    "train.batch_rampup.increment": moves("train.batch_rampup.increment=1", before=RAMP),
    "train.batch_rampup.tokens": moves("train.batch_rampup.tokens=512", before=RAMP),
    "train.session": Edit("train.session=b", before=TWO),
    "train.max_steps": Edit(""),  # as every test of these does
    "train.seed": Edit("train.seed=7"),
    "train.recompute": Edit("train.recompute=full"),
    "train.recompute_num_layers": Edit("train.recompute_num_layers=2", before="train.recompute=full"),
    "train.num_threads": Edit("train.num_threads=1"),
    "train.gc_interval": Edit("train.gc_interval=1"),
    "validation.sets.name": Edit("validation.sets.0.name=other"),
    "validation.sets.path": Edit("validation.sets.0.path={corpus}/tokens/validation/zh_web"),
    "validation.interval": Edit("validation.interval=1 steps"),
    "validation.at_start": Edit("validation.at_start=true"),
    "validation.micro_batch_size": Edit("validation.micro_batch_size=3"),
    "validation.max_sequences": Edit("validation.max_sequences=2"),
    "validation.reference_tokenizer": Edit("validation.reference_tokenizer={corpus}/tokenizer.model"),
    "validation.references": refused("validation.references={corpus}/none.csv", 2),
    "checkpoint.interval": Edit("checkpoint.interval=1 steps"),
    "checkpoint.async_save": Edit("checkpoint.async_save=false"),
    "checkpoint.keep_last": Edit("checkpoint.keep_last=1"),
    "checkpoint.keep_every_tokens": Edit("checkpoint.keep_every_tokens=10"),
    "checkpoint.release_marks": Edit("checkpoint.release_marks=[1200]"),
    "checkpoint.save_optimizer": Edit("checkpoint.save_optimizer=false"),
    "checkpoint.init_from": Edit("checkpoint.init_from={corpus}"),
    "checkpoint.start_over": Edit("checkpoint.start_over=true"),
    "monitor.log_interval": Edit("monitor.log_interval=5"),
    "monitor.tensorboard": Edit("monitor.tensorboard=true"),
    "monitor.peak_tflops": Edit("monitor.peak_tflops=1"),
    "profile.first_step": Edit("profile.first_step=5"),
    "profile.num_steps": Edit("profile.num_steps=1", before="profile.first_step=5"),
    "profile.ranks": Edit("profile.ranks=[1]", before="profile.first_step=5"),
    "resilience.on_nonfinite": Edit("resilience.on_nonfinite=skip"),
    "resilience.on_spike": Edit("resilience.on_spike=skip"),
    "resilience.spike_zscore": Edit("resilience.spike_zscore=3"),
    "resilience.spike_window": Edit("resilience.spike_window=8"),
    "resilience.rerun": Edit("resilience.rerun=false"),
    "resilience.max_bad_steps": Edit("resilience.max_bad_steps=1"),
    "resilience.time_limit_seconds": refused(
        "resilience.time_limit_seconds=0.001 resilience.exit_before_seconds=0", 75, names="nearly over"
    ),
    "resilience.exit_before_seconds": refused(
        "resilience.exit_before_seconds=3599.9999", 75, before="resilience.time_limit_seconds=3600", names="nearly over"
    ),
    "resilience.step_timeout_seconds": Edit("resilience.step_timeout_seconds=900"),
    "resilience.startup_timeout_seconds": Edit("resilience.startup_timeout_seconds=300"),
    "resilience.straggler_interval": Edit("resilience.straggler_interval=1"),
    "resilience.straggler_ratio": Edit("resilience.straggler_ratio=2"),
    "sessions.name": Edit("sessions.1.name=c", before=TWO),
    "sessions.tokens": moves("sessions.1.tokens=2048 train.tokens=2816", before=f"{TWO} schedule.warmup_tokens=0"),
    "sessions.weights": moves("sessions.1.weights={zh_web: 1.0}", before=TWO),
    "sessions.schedule": moves("sessions.1.schedule={lr: 1e-3}", before=TWO),
    "sessions.start": Edit("sessions.1.start=everything", before=TWO),
}
"""What comes of each key where one process on a CPU can show it; `sessions.schedule` has the keys of `schedule`."""
ELSEWHERE = {
    "parallel.tp_size",  # other layouts: tests/trainer/test_parity.py
    "parallel.pp_size",
    "parallel.vpp_size",
    "parallel.cp_size",
    "parallel.sequence_parallel",
    "parallel.tp_comm_overlap",  # Transformer Engine alone
    "precision.fp8.param_gather",
    "kernels.rope_fusion",
    "kernels.cuda_graphs",
    "kernels.gradient_accumulation_fusion",  # a GPU alone
    "profile.memory_snapshot",
    "finetune.base",  # of a model that is taught further: tests/trainer/test_finetune.py
    "finetune.epochs",
    "finetune.keep_best",
    "finetune.dpo.beta",  # tests/trainer/test_reference.py
    "finetune.lora.rank",
    "finetune.lora.alpha",
    "finetune.lora.dropout",
    "finetune.lora.targets",
    "monitor.wandb.project",
    "monitor.wandb.name",
    "monitor.wandb.mode",
}
"""Keys that hold no state, and what they name is made anew by every job."""
FIRST, LAST = 4, 6
QUICK = ("model.init_std", "parallel.distributed_optimizer", "train.seed", "sessions.name")


def test_every_key_has_its_outcome():
    keys = {key for key in leaves(Config) if not key.startswith("sessions.schedule.")}
    keys = {re.sub(r"(.weights?)\.(start|end)$", r"\1", key) for key in keys} | {"sessions.schedule"}
    assert keys == (EDITS.keys() | ELSEWHERE) - {"data.train.weight.start", "data.train.weight.end"}
    assert KEPT.keys() <= EDITS.keys()


@pytest.fixture(scope="module")
def begun():
    """By what recipes had before: a run folder after FIRST steps, and the losses of LAST without an edit."""
    return {}


@pytest.fixture
def resumed(begun, hurt, run_dir, corpus, tmp_path_factory):  # noqa: F811
    """`resumed(edit)`: how a run ended that was edited after FIRST steps; its losses; and those without the edit."""

    def train(last: int, *overrides: str) -> Ended:
        return hurt(f"train.max_steps={last}", "checkpoint.interval=null", *overrides)

    def run(edit: Edit) -> tuple[Ended, list[float], list[float]]:
        before, change = split(edit.before), split(edit.change.replace("{corpus}", str(corpus)))
        if edit.before not in begun:
            assert train(FIRST, *before).code == 0
            kept = shutil.copytree(run_dir, tmp_path_factory.mktemp("begun") / "run")
            assert train(LAST, *before).code == 0
            begun[edit.before] = kept, losses(run_dir)
            shutil.rmtree(run_dir)
        kept, expected = begun[edit.before]
        shutil.copytree(kept, run_dir)
        return train(LAST, *before, *change), losses(run_dir), expected

    return run


def split(overrides: str) -> list[str]:
    """Overrides in one text; a value may hold blanks."""
    return re.split(r" (?=[a-z_]+\.[a-z_]+)", overrides) if overrides else []


@pytest.mark.parametrize("key", slow_except(EDITS, *QUICK))
def test_an_edited_key(key, resumed, run_dir):  # noqa: F811
    edit = EDITS[key]
    ended, found, expected = resumed(edit)
    assert ended.code == edit.code, ended.message
    if edit.code:
        assert (edit.names or key) in ended.message
        return
    assert (found != pytest.approx(expected, rel=1e-6)) == edit.moves
    is_kept = key in KEPT or key in ("train.seed", "sessions.start")
    for override in split(edit.change):
        edited = re.sub(r"\.\d+\.", r"[NAME].", override.split("=")[0]).removesuffix(".name")
        pattern = re.escape(edited).replace("NAME", r"\w+")
        is_told = f"edited since step_{FIRST:07d}, and {'has no effect' if is_kept else 'counts'}.*{pattern}"
        assert re.search(is_told, log_of(run_dir))


def test_the_seed_counts_where_there_is_dropout(recipe):
    change = find_changes(recipe(), recipe("train.seed=7"), 8)
    assert change.applied == [] and "train.seed: 1234 -> 7 (" in change.kept[0]
    dropout = "model.hidden_dropout=0.1"
    change = find_changes(recipe(dropout), recipe(dropout, "train.seed=7"), 8)
    assert change.applied == ["train.seed: 1234 -> 7"] and change.kept == []


def test_the_loss_scale_counts_where_the_checkpoint_has_none(recipe):
    edit = "precision.initial_loss_scale=8"
    assert len(find_changes(recipe(), recipe("precision.dtype=fp16", edit), 8).applied) == 2
    (kept,) = find_changes(recipe("precision.dtype=fp16"), recipe("precision.dtype=fp16", edit), 8).kept
    assert kept.startswith("precision.initial_loss_scale: 65536.0 -> 8.0 (")


def test_parts_of_lists_are_told_by_their_names(recipe):
    change = find_changes(
        recipe("validation.interval=null"), recipe("validation.interval=5 steps", "data.train.1.weight=2"), 8
    )
    assert change.applied == ["data.train[zh_web].weight: 0.3 -> 2.0", "validation.interval: null -> 5 steps"]
    assert change.kept == []


def test_sessions_that_are_over_stay_what_they_were(recipe):
    def sessions(lr: float, start: str, tokens: int = 512):
        parts = [
            {"name": "a", "tokens": tokens, "schedule": {"lr": lr}},
            {"name": "b", "tokens": 512, "schedule": {"lr": lr}, "start": start},
            {"name": "c", "tokens": 512, "schedule": {"lr": lr}, "start": start},
        ]
        return recipe(f"sessions={json.dumps(parts)}", "schedule=null", f"train.tokens={tokens + 1024}")

    change = find_changes(sessions(0.1, "everything"), sessions(0.2, "weights"), consumed_samples=24)
    assert [text.partition(":")[0] for text in change.kept] == ["sessions[a].schedule.lr", "sessions[b].start"]
    assert [text.partition(":")[0] for text in change.applied if "sessions" in text] == [
        "sessions[b].schedule.lr",
        "sessions[c].schedule.lr",
        "sessions[c].start",
    ]
