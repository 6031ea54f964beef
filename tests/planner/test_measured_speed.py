"""Steps on a machine whose rates were measured."""

import pytest
import yaml

from megatron_sky.planner.forecast import Forecast, usable_bytes
from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.measured import Rates, read_measured
from megatron_sky.planner.measured_speed import layer_passes
from megatron_sky.planner.memory import GIB
from megatron_sky.planner.speed import linears, step_seconds
from megatron_sky.planner.timeline import play
from tests.planner.machine import entry, seconds_of


@pytest.fixture
def make_measured_job(make_config, tmp_path):
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump(entry()), encoding="utf-8")
    cluster = cluster_of(find_gpu(str(path)))
    overrides = ("precision.dtype=fp32", "train.global_batch_size=4", "model.seq_length=512")
    return lambda *more, ranks=1: Job.of(make_config(*overrides, *more), cluster, ranks)


def test_products_are_looked_up(make_measured_job):
    job = make_measured_job()
    step = step_seconds(job)
    h, f, t, v = 1024, 2816, 512, job.model.padded_vocab_size
    layer = sum(seconds_of("product_forward", t, n, k) for n, k in ((3 * h, h), (h, h), (2 * f, h), (h, f)))
    whole = 4 * 3 * (8 * layer + seconds_of("product_forward", t, v, h))
    assert step.forward.products + step.backward.products == pytest.approx(whole, rel=0.03)


def test_a_mask_computes_what_a_causal_kernel_leaves_out(make_measured_job):
    def scores(*overrides, ranks=1):
        return step_seconds(make_measured_job(*overrides, ranks=ranks)).forward.attention

    documents, cp2 = "data.document_mask=true", "parallel.cp_size=2"
    assert scores(documents) == pytest.approx(2 * scores(), rel=0.1)
    assert scores(cp2, ranks=2) == pytest.approx(scores(cp2, documents, ranks=2))
    assert scores(cp2, ranks=2) < 0.75 * scores(documents)


def test_two_ranks_are_not_twice_the_machine(make_measured_job):
    alone = step_seconds(make_measured_job()).total
    for layout in ((), ("parallel.tp_size=2",), ("parallel.pp_size=2",)):
        together = step_seconds(make_measured_job(*layout, ranks=2)).total
        assert together > 0.95 * alone, layout


def test_ranks_wait_for_the_slower_ones_at_each_collective(make_measured_job, monkeypatch):
    job = make_measured_job("parallel.tp_size=2", ranks=2)
    rates = job.rates
    assert rates.waiting("fp32", 0.02) == pytest.approx(2 * seconds_of("wait", 2, 20_000), rel=0.05)
    forward, backward = layer_passes(job, rates, linears(job))
    assert min(forward.wait_tp, backward.wait_tp) > 0 == forward.wait_cp
    step = step_seconds(job)
    monkeypatch.setattr(Rates, "waiting", lambda *_: 0.0)
    waits = job.num_microbatches * job.model.num_layers * (forward.wait_tp + backward.wait_tp)
    assert step.total - step_seconds(job).total == pytest.approx(waits)


def test_a_file_of_an_earlier_version_has_no_waits():
    measured = entry()["measured"]
    for each in measured:
        each["seconds"].pop("wait", None)
    tables, problems = read_measured(measured, "measured")
    assert not problems and tables.at(2).waiting("fp32", 0.02) == 0.0


def test_nothing_hides_where_cores_compute_and_send(make_measured_job):
    plain = step_seconds(make_measured_job(ranks=2))
    overlaps = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
    assert plain.data_parallel > 0
    assert step_seconds(make_measured_job(*overlaps, ranks=2)).data_parallel == pytest.approx(plain.data_parallel)


def test_memory_is_shared_and_energy_is_not_known(make_measured_job):
    one, two = make_measured_job(), make_measured_job(ranks=2)
    assert usable_bytes(one) == pytest.approx(2 * usable_bytes(two))
    forecast = Forecast(one)
    assert forecast.memory.reserve == 0.5 * GIB and forecast.kwh(1 << 30) is None
    assert 0.5 < forecast.mfu() < 1.5  # attention counted whole, and half of it computed


def test_the_pipeline_can_be_played(make_measured_job):
    job = make_measured_job("parallel.pp_size=2", ranks=2)
    assert play(job).seconds == pytest.approx(step_seconds(job).total, rel=0.1)
