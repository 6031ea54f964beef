"""Closed forms of memory against the rehearsal of the program itself."""

import pytest

from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.memory import peak_memory, stage_memory
from megatron_sky.planner.rehearsal import Request, rehearse_all, stage_ranks

GPUS = 16
GPT = (
    "model.position_embedding=learned_absolute model.normalization=layernorm model.activation=gelu "
    "model.add_bias_linear=true model.tie_embeddings=true"
)
LAYOUTS = {
    "one stage": "parallel.pp_size=1",
    "two stages": "parallel.pp_size=2",
    "tensor parallel": "parallel.tp_size=2 parallel.pp_size=2",
    "sequence parallel": "parallel.tp_size=2 parallel.pp_size=2 parallel.sequence_parallel=true",
    "interleaved": "parallel.pp_size=2 parallel.vpp_size=2",
    "interleaved, one layer a chunk": "parallel.pp_size=4 parallel.vpp_size=2",
    "context parallel": "parallel.cp_size=2 parallel.pp_size=2",
    "no ZeRO-1": "parallel.pp_size=2 parallel.distributed_optimizer=false",
    "gradients in 16 bits": "parallel.pp_size=2 precision.grad_reduce_in_fp32=false",
    "selective": "parallel.pp_size=2 train.recompute=selective",
    "full": "parallel.pp_size=2 train.recompute=full",
    "full, two layers a block": "parallel.pp_size=2 train.recompute=full train.recompute_num_layers=2",
    "micro batch": "parallel.pp_size=2 train.micro_batch_size=4",
    "grouped queries": "parallel.pp_size=2 model.num_query_groups=2",
    "documents": "parallel.pp_size=2 data.document_mask=true",
    "documents, micro batch": "parallel.pp_size=2 data.document_mask=true train.micro_batch_size=4",
    "documents, context parallel": "parallel.cp_size=2 parallel.pp_size=2 data.document_mask=true",
    "context parallel of 4, micro batch": "parallel.cp_size=4 parallel.pp_size=2 train.micro_batch_size=2",
    "fp16": "parallel.pp_size=2 precision.dtype=fp16",
    "fp32": "parallel.pp_size=2 precision.dtype=fp32",
    "GPT": f"parallel.pp_size=2 {GPT}",
    "GPT with dropout": f"parallel.pp_size=2 {GPT} model.hidden_dropout=0.1 model.attention_dropout=0.1",
}
FIRST = ("two stages", "sequence parallel")


def compare(make_config, names):
    """(name, stage, closed form, rehearsal) of the first and last stage of these layouts."""
    requests, named = [], []
    for name in names:
        config = make_config(*LAYOUTS[name].split(" "))
        ranks = stage_ranks(config, GPUS)
        for rank in sorted({ranks[0], ranks[-1]}):
            requests.append(Request(config, GPUS, rank))
            named.append(name)
    cluster = cluster_of(find_gpu("a800"))
    for name, request, rehearsed in zip(named, requests, rehearse_all(requests), strict=True):
        job = Job.of(request.config, cluster, GPUS)
        yield f"{name}, stage {rehearsed.stage}", stage_memory(job, rehearsed.stage), rehearsed


@pytest.mark.slow
@pytest.mark.parametrize("names", [FIRST, [name for name in LAYOUTS if name not in FIRST]])
def test_closed_forms_are_the_programs(make_config, names):
    for name, closed, rehearsed in compare(make_config, names):
        assert closed.weights == rehearsed.state["weights"], name
        assert closed.gradients == rehearsed.state["gradients"], name
        # A rank's share of the optimizer is in pieces, each rounded up to the allocator's 512 bytes.
        assert closed.optimizer == pytest.approx(rehearsed.state["optimizer"], abs=64 << 10), name
        # What a pass leaves behind for the next, as tensor parallelism's buffers, is among the closed forms' parts.
        kept = sum(rehearsed.state[part] for part in ("weights", "gradients", "optimizer"))
        made = rehearsed.peaks["forward and backward"] - kept
        mine = closed.activations + closed.logits + closed.working
        assert mine == pytest.approx(made, rel=0.01), name


def test_a_stage_holds_what_is_in_flight(make_job):
    one, two = (make_job(f"parallel.pp_size={pp}", "train.recompute=none") for pp in (1, 2))
    assert two.chunks_in_flight(0) == 2 and two.chunks_in_flight(1) == 1 and one.chunks_in_flight(0) == 1
    interleaved = make_job("parallel.pp_size=4", "parallel.vpp_size=2")
    assert [interleaved.chunks_in_flight(stage) for stage in range(4)] == [11, 9, 7, 5]
    few = make_job("parallel.pp_size=4", "train.global_batch_size=4")
    assert few.num_microbatches == 1 and few.chunks_in_flight(0) == 1


def test_recomputation_and_sharding_save(make_job):
    def total(*overrides):
        return peak_memory(make_job("parallel.pp_size=2", *overrides)).total

    assert total("train.recompute=full") < total("train.recompute=selective") <= total()
    assert total() < total("parallel.distributed_optimizer=false")
