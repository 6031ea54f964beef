"""Parameters by stage against the model's own count."""

import pytest

from megatron_sky.model.flops import num_parameters
from megatron_sky.planner.parameters import stage_parameters


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
