"""Rules that span sections: each broken one is told, with numbers and a fix, before anything is built."""

import pytest

from megatron_sky.config.validate import batch_sizes, check, data_parallel_size, find_notes
from megatron_sky.errors import ConfigError

BROKEN = {
    "parallel.tp_size=3": (6, "model.num_attention_heads"),
    "parallel.pp_size=3": (3, "model.num_layers = 4: must be a multiple of parallel.pp_size * vpp_size (3)"),
    "parallel.tp_size=2 parallel.pp_size=2": (6, "must divide the number of ranks, 6"),
    "parallel.sequence_parallel=true": (1, "needs parallel.tp_size above 1"),
    "parallel.vpp_size=2": (1, "needs parallel.pp_size above 1"),
    "parallel.overlap_param_gather=true": (1, "needs parallel.overlap_grad_reduce"),
    "parallel.overlap_grad_reduce=true parallel.overlap_param_gather=true parallel.distributed_optimizer=false": (
        1,
        "needs parallel.distributed_optimizer",
    ),
    "parallel.cp_size=2 model.seq_length=34": (2, "2 * parallel.cp_size (4)"),
    "train.global_batch_size=6": (4, "train.micro_batch_size * data-parallel size (1 * 4 = 4)"),
    "parallel.pp_size=2 parallel.vpp_size=2 train.global_batch_size=3": (2, "interleaved 1F1B needs a multiple"),
    "model.num_query_groups=3": (1, "must be a multiple of model.num_query_groups"),
    "model.vocab_multiple=5 parallel.tp_size=2": (2, "model.vocab_multiple"),
    "model.hidden_size=30": (1, "model.hidden_size = 30: must be a multiple of model.num_attention_heads (4)"),
    "model.kv_channels=7": (1, "must be even for rotary positions"),
    "train.recompute=full train.recompute_num_layers=8": (1, "at most the 4 layers"),
    "schedule.min_lr=1": (1, "schedule.min_lr"),
    "schedule.warmup_tokens=1T": (1, "schedule.warmup_tokens"),
    "schedule.style=wsd": (1, "schedule.wsd_decay_tokens"),
    "schedule.style=inverse_sqrt schedule.warmup_tokens=0": (1, "must be above 0 with style=inverse_sqrt"),
    "data.megatron.split=90,10": (1, "data.megatron.split = '90,10': has no effect with data.sampling=plan"),
    "data.megatron.weights=sizes": (1, "data.megatron.weights = 'sizes': has no effect"),
    "schedule.wsd_decay_tokens=100": (1, "has no effect with schedule.style=cosine"),
    "train.tokens=0": (1, "train.tokens"),
    "train.batch_rampup.start_size=16 train.batch_rampup.increment=2 train.batch_rampup.tokens=100": (1, "start_size"),
    "train.batch_rampup.start_size=2 train.batch_rampup.increment=4 train.batch_rampup.tokens=100": (1, "increment"),
    "train.batch_rampup.start_size=2 train.batch_rampup.increment=2 train.batch_rampup.tokens=100": (
        4,
        "a size on the way",
    ),
    "resilience.time_limit_seconds=60": (1, "must be above resilience.exit_before_seconds (300)"),
    "data.sampling=megatron data.document_mask=true": (1, "data.document_mask = True: can't go with data.sampling"),
    "data.sampling=megatron data.mask_document_ends=true": (1, "data.mask_document_ends = True: can't go with"),
    'data.sampling=megatron data.train.0.weight={"start":1,"end":2}': (1, "is a ramp, which data.sampling=megatron"),
    "data.sampling=megatron data.train.0.weight=0": (1, ".weight = 0: must be above 0 with data.sampling=megatron"),
    'data.sampling=megatron sessions=[{"name":"a","tokens":10240,"weights":{"en_web":1}}]': (1, "sessions.weights ="),
}


@pytest.mark.parametrize("overrides", BROKEN)
def test_each_broken_rule_is_told(overrides, recipe):
    world_size, part = BROKEN[overrides]
    with pytest.raises(ConfigError) as caught:
        check(recipe(*overrides.split()), world_size)
    assert part in str(caught.value)
    assert "fix:" in str(caught.value)


def test_several_at_once(recipe):
    with pytest.raises(ConfigError) as caught:
        check(recipe("parallel.tp_size=3", "parallel.sequence_parallel=true", "schedule.min_lr=1"), 6)
    assert len(caught.value.problems) >= 4


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_good_recipe_passes(world_size, recipe):
    check(recipe(), world_size)


def test_notes(recipe):
    notes = find_notes(recipe("parallel.pp_size=4", "train.global_batch_size=2", "train.tokens=1001"), 4)
    assert any("idle" in note for note in notes)
    assert any("no multiple" in note for note in notes)


def test_sizes(recipe):
    config = recipe("parallel.tp_size=2", "parallel.pp_size=2")
    assert (data_parallel_size(config, 8), data_parallel_size(config, 6)) == (2, 0)
    rampup = recipe(
        "train.batch_rampup.start_size=2", "train.batch_rampup.increment=2", "train.batch_rampup.tokens=100"
    ).train.batch_rampup
    assert batch_sizes(8, rampup) == [2, 4, 6, 8]
