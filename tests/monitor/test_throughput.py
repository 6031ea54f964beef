"""Speeds and time left are arithmetic: checked against hand-made cases and as properties."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sky.monitor.throughput import GpuPeak, Throughput, gpu_peak, peak_tflops

FLOPS = 6e9
# The machine may be busy with other work: slow draws are no failure of ours.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, None),
        ("NVIDIA A100-PCIE-40GB", 312, None),
        ("NVIDIA A100 80GB PCIe", 312, None),
        ("NVIDIA A800-SXM4-80GB", 312, None),
        ("a800", 312, None),
        ("NVIDIA A10", 125, None),
        ("NVIDIA H100 80GB HBM3", 989.4, 1978.9),
        ("NVIDIA H100 PCIe", 756, 1513),
        ("NVIDIA H100 NVL", 835.5, 1670.5),
        ("NVIDIA H800", 989.4, 1978.9),
        ("NVIDIA H20", 148, 296),
        ("NVIDIA H200", 989.4, 1978.9),
        ("NVIDIA H200 NVL", 835.5, 1670.5),
        ("NVIDIA GH200 480GB", 989.4, 1978.9),
        ("NVIDIA B200", 2250, 4500),
        ("NVIDIA GB200", 2500, 5000),
        ("NVIDIA L40S", 362.05, 733),
        ("NVIDIA RTX A6000", 154.8, None),
        ("NVIDIA RTX 6000 Ada Generation", 364.25, 728.5),
        ("NVIDIA GeForce RTX 4090", 165.2, 330.3),
    ],
)
def test_names_as_cuda_gives_them(name, bf16, fp8):
    assert (peak_tflops(name, "bf16"), peak_tflops(name, "fp8")) == (bf16, fp8)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cpu",
        "NVIDIA A10G",
        "NVIDIA A100-SXM-64GB",  # a special build with more cores
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "AMD Instinct MI300X",
        "NVIDIA",
    ],
)
def test_unknown_names_give_nothing(name):
    assert gpu_peak(name) is None
    assert peak_tflops(name, "bf16") is None


def test_formats_a_device_lacks():
    assert gpu_peak("Tesla V100-SXM2-16GB") == GpuPeak(bf16=None, fp16=125, fp8=None)
    assert peak_tflops("Tesla V100-PCIE-16GB", "fp16") == 112
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "fp32") is None


def test_skyworks_own_figures():
    """Report, table 10: 1,873 tokens/s/GPU are 176.2 TFLOP/s and 56.5 % of an A800, so 94.1 GFLOP a token."""
    speed = Throughput(flops_per_token=176.2e12 / 1873, world_size=512, peak_tflops=peak_tflops("A800", "bf16")).step(
        tokens=1873 * 512 * 10, seconds=10.0
    )
    assert speed.tokens_per_second == pytest.approx(1873 * 512)
    assert speed.tokens_per_second_per_gpu == pytest.approx(1873)
    assert speed.tflops_per_gpu == pytest.approx(176.2)
    assert speed.mfu == pytest.approx(0.565, abs=5e-4)


def test_no_mfu_without_a_peak():
    assert Throughput(flops_per_token=FLOPS, world_size=1).step(tokens=10, seconds=1.0).mfu is None


def test_the_first_step_does_not_count():
    throughput = Throughput(flops_per_token=FLOPS, world_size=1)
    throughput.step(tokens=1000, seconds=60.0)
    assert throughput.seconds_left(1000) is None
    throughput.step(tokens=1000, seconds=0.5)
    assert throughput.seconds_left(4000) == pytest.approx(2.0)


@patient
@given(
    batches=st.lists(st.integers(1, 10**7), min_size=2, max_size=60),
    rate=st.floats(1.0, 1e7),
    tokens_left=st.integers(0, 10**13),
)
def test_time_left_is_exact_at_a_steady_rate_whatever_the_batch_sizes(batches, rate, tokens_left):
    throughput = Throughput(flops_per_token=FLOPS, world_size=8)
    for tokens in batches:
        throughput.step(tokens=tokens, seconds=tokens / rate)
    assert throughput.seconds_left(tokens_left) == pytest.approx(tokens_left / rate, rel=1e-9)


@patient
@given(steps=st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-3, 1e3)), min_size=2, max_size=60))
def test_time_left_lies_between_the_slowest_and_the_fastest_step(steps):
    throughput = Throughput(flops_per_token=FLOPS, world_size=1)
    for tokens, seconds in steps:
        throughput.step(tokens=tokens, seconds=seconds)
    per_token = [seconds / tokens for tokens, seconds in steps[1:]]
    left = throughput.seconds_left(1000) / 1000
    assert min(per_token) * (1 - 1e-9) <= left <= max(per_token) * (1 + 1e-9)


def test_time_left_follows_a_change_of_speed():
    throughput = Throughput(flops_per_token=FLOPS, world_size=1)
    for seconds in [1.0] * 100 + [2.0] * 100:
        throughput.step(tokens=100, seconds=seconds)
    assert throughput.seconds_left(100) == pytest.approx(2.0, rel=0.02)
    assert throughput.seconds_left(0) == 0.0


@patient
@given(tokens=st.integers(1, 10**9), seconds=st.floats(1e-3, 1e3), world_size=st.integers(1, 4096))
def test_speeds_agree_with_each_other(tokens, seconds, world_size):
    speed = Throughput(flops_per_token=FLOPS, world_size=world_size, peak_tflops=100.0).step(
        tokens=tokens, seconds=seconds
    )
    assert speed.tokens_per_second_per_gpu * world_size == pytest.approx(speed.tokens_per_second)
    assert speed.tflops_per_gpu * 1e12 == pytest.approx(speed.tokens_per_second_per_gpu * FLOPS)
    assert speed.mfu * 100 == pytest.approx(speed.tflops_per_gpu)
