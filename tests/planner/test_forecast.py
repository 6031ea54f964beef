"""Speed and cost of a job."""

import pytest

from megatron_sky.model.flops import flops_per_token
from megatron_sky.planner.forecast import Forecast, usable_bytes


def test_the_budget_is_the_speeds(make_job):
    forecast = Forecast(make_job("parallel.pp_size=2"))
    tokens = 10**12
    seconds = tokens / forecast.tokens_per_second_per_gpu / 16
    assert forecast.days(tokens) * 86_400 == pytest.approx(seconds)
    assert forecast.gpu_hours(tokens) == pytest.approx(16 * seconds / 3600)
    assert forecast.kwh(tokens) == pytest.approx(forecast.gpu_hours(tokens) * 0.4 * 1.5)


def test_both_counts_of_mfu(make_job):
    forecast = Forecast(make_job())
    model = forecast.job.model
    tflops = forecast.tokens_per_second_per_gpu * flops_per_token(model)
    assert forecast.mfu() == pytest.approx(tflops / 312e12)
    less = 6 * model.vocab_size * model.hidden_size + 6 * model.num_layers * model.hidden_size * model.seq_length
    assert forecast.causal_mfu() == pytest.approx(tflops / 312e12 * (1 - less / flops_per_token(model)))


def test_memory_is_the_fullest_stages(make_job):
    forecast = Forecast(make_job("parallel.pp_size=4"))
    assert forecast.memory is forecast.stages[0] and len(forecast.stages) == 4
    assert forecast.fits and forecast.memory.total < usable_bytes(forecast.job) < 80 << 30
