"""The enums of Transformer Engine's extension, as its Python half asks for them.

Source: `common/util/pybind_helper.h` and `pytorch/csrc/extensions/pybind.cpp` of Transformer Engine 2.8 to 2.20.
"""

import enum


class DType(enum.IntEnum):
    """Number formats; two of them in different enums are equal where their numbers are."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


def _numbered(name: str, members: str) -> type[enum.IntEnum]:
    return enum.IntEnum(name, {member: number for number, member in enumerate(members.split())})  # type: ignore[return-value]


_SEPARATE = "SB3HD SBH3D SBHD_SB2HD SBHD_SBH2D SBHD_SBHD_SBHD BS3HD BSH3D BSHD_BS2HD BSHD_BSH2D BSHD_BSHD_BSHD"
_RAGGED = "T3HD TH3D THD_T2HD THD_TH2D THD_THD_THD SBHD_BSHD_BSHD BSHD_SBHD_SBHD THD_BSHD_BSHD THD_SBHD_SBHD"
_PAGED = "BSHD_BSHD_BSHD BSHD_SBHD_SBHD SBHD_BSHD_BSHD SBHD_SBHD_SBHD THD_BSHD_BSHD THD_SBHD_SBHD"
_LAYOUTS = [
    *_SEPARATE.split(),
    *_RAGGED.split(),
    *(f"Paged_KV_{name}" for name in _PAGED.split()),
    "BHSD_BHSD_BHSD",
    "QKV_Layout_NOT_SET",
]
_MASKS = "NO_MASK PADDING_MASK CAUSAL_MASK PADDING_CAUSAL_MASK CAUSAL_BOTTOM_RIGHT_MASK"

ENUMS: dict[str, type[enum.IntEnum]] = {
    "DType": DType,
    "NVTE_Bias_Type": _numbered("NVTE_Bias_Type", "NVTE_NO_BIAS NVTE_PRE_SCALE_BIAS NVTE_POST_SCALE_BIAS NVTE_ALIBI"),
    "NVTE_Mask_Type": _numbered(
        "NVTE_Mask_Type",
        " ".join(f"NVTE_{name}" for name in [*_MASKS.split(), "PADDING_CAUSAL_BOTTOM_RIGHT_MASK"]),
    ),
    "NVTE_Softmax_Type": _numbered(
        "NVTE_Softmax_Type", "NVTE_VANILLA_SOFTMAX NVTE_OFF_BY_ONE_SOFTMAX NVTE_LEARNABLE_SOFTMAX"
    ),
    "NVTE_QKV_Format": _numbered(
        "NVTE_QKV_Format",
        "NVTE_SBHD NVTE_BSHD NVTE_THD NVTE_BSHD_2SBHD NVTE_SBHD_2BSHD NVTE_THD_2BSHD NVTE_THD_2SBHD NVTE_BHSD "
        "NVTE_QKV_Format_NOT_SET",
    ),
    "NVTE_QKV_Layout": _numbered("NVTE_QKV_Layout", " ".join(f"NVTE_{name}" for name in _LAYOUTS)),
    "Float8BlockScaleTensorFormat": _numbered("Float8BlockScaleTensorFormat", "GEMM_READY COMPACT INVALID"),
    "FP8FwdTensors": _numbered(
        "FP8FwdTensors", " ".join(f"GEMM{n}_{name}" for n in (1, 2, 3) for name in ("INPUT", "WEIGHT", "OUTPUT"))
    ),
    "FP8BwdTensors": _numbered(
        "FP8BwdTensors", " ".join(f"GRAD_{name}{n}" for n in (1, 2, 3) for name in ("OUTPUT", "INPUT"))
    ),
    "CommOverlapType": _numbered("CommOverlapType", "RS AG"),
    "CommOverlapAlgo": _numbered(
        "CommOverlapAlgo",
        "BULK_OVERLAP_AG BULK_OVERLAP_RS SPLIT_PIPELINED_AG_P2P SPLIT_PIPELINED_RS SPLIT_PIPELINED_RS_P2P "
        "ATOMIC_GEMM_RS ATOMIC_GEMM_AG_P2P ATOMIC_GEMM_RS_P2P EXTERNAL_BULK_OVERLAP_AG",
    ),
    "NVTEScalingMode": _numbered(
        "NVTEScalingMode",
        "NVTE_DELAYED_TENSOR_SCALING NVTE_MXFP8_1D_SCALING NVTE_BLOCK_SCALING_1D NVTE_BLOCK_SCALING_2D "
        "NVTE_NVFP4_1D_SCALING NVTE_INVALID_SCALING",
    ),
    "NVTERoutingMapFormat": _numbered("NVTERoutingMapFormat", "BYTEMAP BITMAP_U8"),
    "NVTEQBHistogramMode": _numbered("NVTEQBHistogramMode", "TWO_KERNEL FUSED_ATOMIC"),
}


def attention_backends(version: tuple[int, ...]) -> type[enum.IntEnum]:
    """The kinds of fused attention; those for 512 tokens went with 2.16, and the Python half counts them."""
    kinds = {"NVTE_No_Backend": -1, "NVTE_F16_max512_seqlen": 0, "NVTE_F16_arbitrary_seqlen": 1, "NVTE_FP8": 2}
    if version >= (2, 16):
        del kinds["NVTE_F16_max512_seqlen"]
    return enum.IntEnum("NVTE_Fused_Attn_Backend", kinds)  # type: ignore[return-value]
