"""The extension's enums, by version."""

from megatron_sky.distributed.te_stand_in import names


def test_numbers_are_the_extension_s():
    enums = names.ENUMS
    assert enums["DType"].kBFloat16 == 6 and enums["DType"].kFloat8E5M2 == 8
    assert enums["NVTE_QKV_Format"].NVTE_SBHD == 0
    assert enums["NVTE_QKV_Layout"].NVTE_SBHD_SBHD_SBHD == 4 and enums["NVTE_QKV_Layout"].NVTE_THD_THD_THD == 14
    assert enums["FP8BwdTensors"].GRAD_INPUT1 == 1 and enums["FP8FwdTensors"].GEMM2_INPUT == 3


def test_a_kind_of_attention_went_with_2_16():
    assert "NVTE_F16_max512_seqlen" in names.attention_backends((2, 15, 0)).__members__
    assert "NVTE_F16_max512_seqlen" not in names.attention_backends((2, 16, 0)).__members__
