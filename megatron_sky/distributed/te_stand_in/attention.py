"""cuDNN's fused attention as Transformer Engine calls it: when it can be had, and what it keeps.

Source: `common/fused_attn/fused_attn.cpp` and `pytorch/csrc/extensions/attention.cpp` of Transformer Engine 2.8 to
2.20, for cuDNN 9.6 and newer. The places of arguments differ between versions, so they are known by their kinds:
tensors of three dimensions and more are queries, keys and values, in this order.
"""

import torch

from megatron_sky.distributed.meta_device import Watch
from megatron_sky.distributed.te_stand_in import names, quantized

_FORWARD, _BACKWARD = 2, 5  # products over queries x keys x head size; backward computes the scores once more


class Attention:
    """`backends`: the version's enum. Every public method is a function of the extension."""

    def __init__(self, watch: Watch, capability: tuple[int, int], backends):
        self._watch, self._capability, self._backends = watch, capability, backends

    def get_fused_attn_backend(self, first, *rest):
        """Of masks and sizes that this program's layers have: causal or packed, without a window and bias.

        Asked with one description of it all since 2.20, and answered with a reason; with 15 arguments and more before.
        """
        if not rest:
            kind, head_sizes, dropout = first.qkv_dtype, (first.head_dim_qk, first.head_dim_v), first.dropout
            chosen = self._choose(kind, first.qkv_layout, head_sizes, dropout)
            return chosen, "" if chosen == self._backends.NVTE_F16_arbitrary_seqlen else "the sizes do not fit"
        kind, _, layout, _, _, _, dropout, _, _, _, _, *sizes = rest[:13]
        return self._choose(kind, layout, tuple(sizes), dropout)

    def _choose(self, kind, layout, head_sizes, dropout: float):
        widest = 256 if self._capability[0] == 9 else 128
        is_16_bit = names.DType(int(kind)) in (names.DType.kFloat16, names.DType.kBFloat16)
        fits = all(size % 8 == 0 and size <= widest for size in head_sizes)
        if "THD" in _name(layout):  # a mask of documents and dropout do not go together
            fits &= self._capability >= (9, 0) and dropout == 0.0
        kinds = self._backends
        return kinds.NVTE_F16_arbitrary_seqlen if is_16_bit and fits else kinds.NVTE_No_Backend

    def fused_attn_fwd(self, max_seqlen_q, max_seqlen_kv, is_training, attn_scale, p_dropout, set_zero, layout, *rest):
        query, key, value = _operands(rest, 3)
        out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device="meta")
        batch, heads = self._count("flash_attention", _FORWARD, layout, query, key, max_seqlen_q, max_seqlen_kv)
        rows = (query.shape[0], heads, 1) if query.dim() == 3 else (batch, heads, max_seqlen_q, 1)
        statistics = torch.empty(rows, dtype=torch.float32, device="meta")  # in validation too, for CP
        return [out, statistics, torch.empty(2, dtype=torch.int64, device="meta")]

    def fused_attn_bwd(self, max_seqlen_q, max_seqlen_kv, attn_scale, p_dropout, set_zero, layout, *rest):
        query, key, value = _operands(rest, 5)[:3]
        grads = _grads(_layout_of_gradients(layout, rest), query, key, value)
        _, heads = self._count("flash_attention_backward", _BACKWARD, layout, query, key, max_seqlen_q, max_seqlen_kv)
        rows = query.numel() // (heads * query.shape[-1])
        torch.empty(
            rows * heads * (query.shape[-1] + 1), dtype=torch.float32, device="meta"
        )  # the queries' sum in fp32
        return [*grads, None, None]

    def _count(self, name, passes, layout, query, key, queries: int, keys: int) -> tuple[int, int]:
        """Notes the products; (batch, heads)."""
        heads, size = query.shape[-2:]
        if query.dim() == 3:  # one sequence of documents, told as if each token saw the longest one's
            batch = max(1, query.shape[0] // max(1, queries))
        else:
            batch = query.shape[0] if _name(layout).startswith("BS") else query.shape[1]
        dtype = str(query.dtype).removeprefix("torch.")
        self._watch.computed(name, (batch, heads, queries, keys, size), dtype, passes)
        return batch, heads


def _name(layout) -> str:
    return names.ENUMS["NVTE_QKV_Layout"](int(layout)).name.removeprefix("NVTE_")


def _operands(arguments, number: int) -> list[torch.Tensor]:
    tensors = [each for each in arguments if hasattr(each, "shape") and len(each.shape) >= 3]
    if len(tensors) != number or any(map(quantized.is_quantized, tensors)):
        raise quantized.UnknownToRehearsal(
            f"fused attention of {len(tensors)} operands, some of them in 8 bits or a bias: not known to a rehearsal"
        )
    return tensors


def _layout_of_gradients(layout, rest):
    """Newer versions name the gradients' layout apart from the operands'."""
    later = [each for each in rest if type(each).__name__ in ("NVTE_QKV_Layout", "QKVLayout")]
    return later[0] if later else layout


def _grads(layout, query, key, value) -> list[torch.Tensor]:
    """Gradients lie as the operands do: apart, or as parts of one tensor."""
    name = _name(layout)
    device = {"dtype": query.dtype, "device": "meta"}
    if "3" in name or "2" in name:
        packed, place = (query, key, value) if "3" in name else (key, value), -1 if name[-2] in "32" else -2
        at = place - 1
        shape = list(packed[0].shape)
        shape.insert(len(shape) + at + 1, len(packed))
        whole = torch.empty(shape, **device)
        parts = list(whole.unbind(at))
        return parts if len(parts) == 3 else [torch.empty(query.shape, **device), *parts]
    return [torch.empty(each.shape, **device) for each in (query, key, value)]
