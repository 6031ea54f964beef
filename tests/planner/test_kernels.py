"""Seconds of single kernels."""

import pytest

from megatron_sky.planner.hardware import coefficients, find_gpu
from megatron_sky.planner.kernels import flash_attention, matmul, memory, unfused_attention

C = coefficients()
A100, H100 = find_gpu("a100"), find_gpu("h100")


def reach(m, n, k, kind="bf16", gpu=A100):
    return 2 * m * n * k / matmul(m, n, k, kind, gpu, C) / gpu.peak(kind)


def test_no_product_beats_the_peak_and_large_ones_come_near():
    large = reach(16384, 12288, 12288)
    assert 0.65 < large < C.of("matmul_efficiency", "a100", "ampere")
    assert reach(4096, 4608, 576) < reach(4096, 4608, 4608) < large


def test_whole_tiles_and_waves_pay():
    full = reach(9 * 256, 12 * 128, 8192)  # a tile for each of the 108 multiprocessors
    assert full > 1.05 * reach(9 * 256, 13 * 128, 8192)
    assert full > reach(9 * 256 - 100, 12 * 128, 8192)


def test_unaligned_rows_are_slow():
    assert matmul(2048, 2048, 108, "bf16", A100, C, 96) > 3 * matmul(2048, 2048, 112, "bf16", A100, C, 96)


def test_8_bits_are_faster_where_the_gpu_has_them():
    assert matmul(8192, 8192, 8192, "fp8", H100, C) < 0.7 * matmul(8192, 8192, 8192, "bf16", H100, C)


def test_a_small_kernel_takes_a_launch():
    assert matmul(8, 8, 8, "bf16", A100, C) == memory(8, A100, C) == C["launch_floor_s"]
    assert memory(8, A100, C, 10) == 10 * C["launch_floor_s"]


def test_a_product_with_one_row_is_as_slow_as_its_weights():
    assert matmul(1, 16384, 16384, "bf16", A100, C) >= 16384**2 * 2 / 2039e9


@pytest.mark.parametrize("kernel", ["flash", "unfused"])
def test_attention_grows_with_the_square_of_its_length(kernel):
    def seconds(length):
        if kernel == "flash":
            return flash_attention(length, length, 32, 128, A100, C)
        return unfused_attention(length, length, 32, 128, False, A100, C)

    for short, long in zip(seconds(4096), seconds(16384), strict=True):
        assert 12 < long / short < 20


def test_flash_attention_saves_memory_traffic():
    assert sum(flash_attention(4096, 4096, 32, 128, A100, C)) < sum(
        unfused_attention(4096, 4096, 32, 128, True, A100, C)
    )
