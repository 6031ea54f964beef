"""Kernel names sorted into classes, and the table of them."""

import pytest

from megatron_sky.monitor.kernels import KernelTime, kernel_class, table

NAMES = {
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "communication",
    "c10d::_allgather_base_": "communication",
    "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, ...>>": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "attention",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matrix products",
    "nvjet_tst_128x256_64x4_2x1_v_bz_TNN": "matrix products",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128>": "matrix products",
    "aten::mm": "matrix products",
    "void transformer_engine::normalization::rmsnorm_fwd_tuned_kernel": "norms",
    "void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctorMaster<float>>": "optimizer",
    "void transformer_engine::cast_fp8_1D_kernel": "8-bit casts",
    "aten::silu_backward": "rotary, activation, loss",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "elementwise",
    "Memcpy DtoD (Device -> Device)": "copies and casts",
    "something unheard of": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_have_classes(name):
    assert kernel_class(name) == NAMES[name]


def test_the_table_adds_up():
    kernels = [
        KernelTime("aten::mm", 20, 6000.0),
        KernelTime("aten::silu", 4, 1000.0),
        KernelTime("aten::bmm", 2, 3000.0),
    ]
    lines = table(kernels, steps=2).splitlines()
    assert lines[1].split() == ["matrix", "products", "4.500", "90.0%", "11"]
    assert lines[2].split()[-3:] == ["0.500", "10.0%", "2"]
    assert [line.split()[-1] for line in lines[5:]] == ["aten::mm", "aten::bmm", "aten::silu"]


def test_nothing_measured_is_no_error():
    assert table([], steps=3).count("\n") == 3
