"""Parameters by stage against the model's own count."""

import pytest

from megatron_sky.model.flops import lora_parameters, num_parameters
from megatron_sky.planner.memory import state_bytes
from megatron_sky.planner.parameters import stage_parameters, trained_parameters
from megatron_sky.planner.speed import step_seconds


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.num_query_groups=2"],
        ["model.activation=gelu", "model.normalization=layernorm", "model.add_bias_linear=true"],
        ["model.position_embedding=learned_absolute", "model.tie_embeddings=true"],
    ],
    ids=" ".join,
)
def test_one_rank_holds_the_whole_model(make_job, overrides):
    job = make_job(*overrides, gpus=1)
    assert stage_parameters(job, 0) == num_parameters(job.model, padded=True)


def test_stages_share_the_model(make_job):
    job = make_job("parallel.pp_size=4")
    assert sum(stage_parameters(job, stage) for stage in range(4)) == num_parameters(job.model, padded=True)


def test_tied_embeddings_are_kept_twice_by_a_pipeline(make_job):
    job = make_job("parallel.pp_size=2", "model.tie_embeddings=true")
    twice = job.model.padded_vocab_size * job.model.hidden_size
    assert sum(stage_parameters(job, stage) for stage in range(2)) == num_parameters(job.model, padded=True) + twice


LORA = "finetune={base: b, lora: {rank: 8}}"


def test_adapters_alone_have_gradients_and_an_optimizer(make_job):
    job, whole = make_job(LORA, gpus=1), make_job(gpus=1)
    count = lora_parameters(job.model, job.lora)
    assert trained_parameters(job, 0) == count < 0.05 * stage_parameters(job, 0)
    held = stage_parameters(job, 0) + count
    assert state_bytes(job, 0) == (2 * held, 4 * count, 12 * count)
    assert step_seconds(job).total < 0.9 * step_seconds(whole).total


def test_each_rank_has_half_of_one_half_of_an_adapter(make_job):
    job, one = make_job(LORA, "parallel.tp_size=2"), make_job(LORA, gpus=1)
    assert trained_parameters(one, 0) / 2 < trained_parameters(job, 0) < trained_parameters(one, 0)
