"""Fused attention: when it can be had, what it gives, in the words of older and newer versions."""

from types import SimpleNamespace

import pytest
import torch

from tests.distributed.te_stand_in.watch import Notes, stand_in


def choice(extension, layout: str = "NVTE_SBHD_SBHD_SBHD", dtype: str = "kBFloat16", size: int = 64, dropout=0.0):
    e = extension
    kind, layout = e.DType[dtype], e.NVTE_QKV_Layout[layout]
    masks = (e.NVTE_Bias_Type.NVTE_NO_BIAS, e.NVTE_Mask_Type.NVTE_CAUSAL_MASK, e.NVTE_Softmax_Type(0))
    old = e.get_fused_attn_backend(True, kind, kind, layout, *masks, dropout, 4, 4, 128, 128, size, size, -1, 0)
    asked = SimpleNamespace(qkv_dtype=kind, qkv_layout=layout, head_dim_qk=size, head_dim_v=size, dropout=dropout)
    new, reason = e.get_fused_attn_backend(asked)
    assert new == old and bool(reason) == (new == e.NVTE_Fused_Attn_Backend.NVTE_No_Backend)
    return new.name.removeprefix("NVTE_")


def test_when_it_can_be_had():
    hopper, ampere = stand_in(Notes()), stand_in(Notes(), capability=(8, 0))
    assert choice(hopper) == choice(ampere) == "F16_arbitrary_seqlen"
    assert choice(hopper, size=20) == choice(hopper, dtype="kFloat32") == "No_Backend"
    assert choice(hopper, size=256) == "F16_arbitrary_seqlen" and choice(ampere, size=256) == "No_Backend"
    assert choice(hopper, "NVTE_THD_THD_THD") == "F16_arbitrary_seqlen"
    assert choice(ampere, "NVTE_THD_THD_THD") == choice(hopper, "NVTE_THD_THD_THD", dropout=0.1) == "No_Backend"


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("newer", [False, True])
def test_what_it_gives(newer):
    notes = Notes()
    e = stand_in(notes)
    layout, lengths = e.NVTE_QKV_Layout.NVTE_SBHD_SBHD_SBHD, torch.empty(3, dtype=torch.int32, device="meta")
    query, key = meta(128, 2, 4, 16), meta(128, 2, 2, 16)
    formats = [e.NVTE_QKV_Format.NVTE_SBHD] * 2 if newer else []
    out, rows, _ = e.fused_attn_fwd(
        128, 128, True, 0.25, 0.0, True, layout, *formats, [-1, 0], lengths, lengths, query, key, key
    )
    assert out.shape == query.shape and rows.shape == (2, 4, 128, 1)
    rest = (0.25, 0.0, True, layout, *formats, [-1, 0], lengths, lengths, query, key, key)
    assert e.fused_attn_fwd(128, 128, False, *rest)[1].shape == rows.shape, "by them context parallelism adds up"
    del notes.products[1:]
    later = [*formats, layout] if newer else []
    grads = e.fused_attn_bwd(
        128, 128, 0.25, 0.0, True, layout, *later, [-1, 0], lengths, lengths, query, key, key, out, out, [rows]
    )
    assert [grad.shape for grad in grads[:3]] == [query.shape, key.shape, key.shape]
    assert notes.products == [
        ("flash_attention", (2, 4, 128, 128, 16), "bfloat16", 2),
        ("flash_attention_backward", (2, 4, 128, 128, 16), "bfloat16", 5),
    ]


@pytest.mark.parametrize("layout", ["NVTE_SBH3D", "NVTE_SB3HD", "NVTE_SBHD_SB2HD", "NVTE_SBHD_SBH2D"])
def test_gradients_lie_as_the_operands_do(layout):
    e, one = stand_in(Notes()), meta(128, 2, 4, 16)
    grads = e.fused_attn_bwd(128, 128, 0.25, 0.0, True, e.NVTE_QKV_Layout[layout], *[one] * 5)[:3]
    assert [grad.shape for grad in grads] == [one.shape] * 3
    together = {grad.untyped_storage()._cdata for grad in grads}
    assert len(together) == (1 if "3" in layout else 2)


def test_other_operands_are_unknown():
    e = stand_in(Notes())
    with pytest.raises(NotImplementedError, match="of 4 operands"):
        e.fused_attn_fwd(8, 8, True, 0.25, 0.0, True, e.NVTE_QKV_Layout(4), *[meta(8, 1, 1, 8)] * 4)
