"""What an operator computes, from its operands' shapes: products and attention, which make nearly all of a step."""

import math

import torch

_aten = torch.ops.aten
Done = tuple[str, tuple[int, ...], str, int]
"""(operator, shape, dtype, floating-point operations); shapes as in `result.Operation`."""


def name_of(func) -> str:
    """torch's name of an operator, without the prefix that it has for attention and the sign of work in place.

    An attention kernel is named alike whether it is called for a batch or for sequences of many lengths.
    """
    name = func._overloadpacket._qualified_op_name.removeprefix("aten::").rstrip("_")
    if name in _KERNELS:
        return name.removeprefix("_").removesuffix("_forward")
    return name.removeprefix("_scaled_dot_product_")


def operation(func, args, result) -> Done | None:
    """What `func` did; None where it is neither product nor attention."""
    find = _SHAPES.get(func._overloadpacket)
    if find is None:
        return None
    shape, passes = find(args)
    dtype = next(arg.dtype for arg in args if isinstance(arg, torch.Tensor))
    return name_of(func), shape, str(dtype).removeprefix("torch."), passes * 2 * math.prod(shape)


def workspace(func, args) -> int:
    """Bytes that the CUDA kernel takes for its own time.

    The backward pass of flash attention adds up the queries' gradient in fp32, rows rounded up to 128 (or 128 more for
    each of many sequences) and heads to 32 (to 64 above 64), keeps a number for each row, and under grouped queries has
    a gradient of keys and values for each query head. Source: flash_attn's `mha_bwd` and `mha_varlen_bwd` in torch.
    """
    if func._overloadpacket is _aten._scaled_dot_product_flash_attention_backward:
        (b, heads, length, size), (_, groups, keys, _) = args[1].shape, args[2].shape
        rows, keys = b * -(-length // 128) * 128, b * keys
    elif func._overloadpacket is _aten._flash_attention_backward:
        (length, heads, size), (keys, groups, _) = args[1].shape, args[2].shape
        rows = length + 128 * (args[6].numel() - 1)
    else:
        return 0
    step = 32 if size <= 64 else 64
    accumulated = 4 * heads * rows * (-(-size // step) * step + 1)
    return accumulated + (2 * heads * keys * size * args[2].element_size() if groups != heads else 0)


def _product(first: int):
    def shape(args):
        a, b = args[first], args[first + 1]
        return (*a.shape[:-2], a.shape[-2], b.shape[-1], a.shape[-1]), 1

    return shape


def _attention(first: int, passes: int):
    """`passes`: products over queries x keys x head size; backward computes the scores once more."""

    def shape(args):
        query, key = args[first], args[first + 1]
        b, heads, length, size = query.shape
        return (b, heads, length, key.shape[2], size), passes

    return shape


def _attention_by_rows(first: int, passes: int):
    """As `_attention`, of operands `[b, s, heads, d]`."""

    def shape(args):
        b, length, heads, size = args[first].shape
        return (b, heads, length, args[first + 1].shape[1], size), passes

    return shape


def _attention_of_lengths(first: int, longest: int, passes: int):
    """As `_attention`, of `[t, heads, d]`, sequences of many lengths: each as long as the longest may be."""

    def shape(args):
        length, heads, size = args[first].shape
        return (1, heads, length, args[longest], size), passes

    return shape


_KERNELS = tuple(f"_{kind}_attention_{way}" for kind in ("flash", "efficient") for way in ("forward", "backward"))
_SHAPES = {
    _aten.mm: _product(0),
    _aten.bmm: _product(0),
    _aten.addmm: _product(1),
    _aten.addmm_: _product(1),
    _aten.baddbmm: _product(1),
    _aten._scaled_mm: _product(0),
    _aten._scaled_dot_product_flash_attention: _attention(0, 2),
    _aten._scaled_dot_product_flash_attention_backward: _attention(1, 5),
    _aten._scaled_dot_product_efficient_attention: _attention(0, 2),
    _aten._scaled_dot_product_efficient_attention_backward: _attention(1, 5),
    _aten._flash_attention_forward: _attention_of_lengths(0, 6, 2),
    _aten._flash_attention_backward: _attention_of_lengths(1, 9, 5),
    _aten._efficient_attention_forward: _attention_by_rows(0, 2),
    _aten._efficient_attention_backward: _attention_by_rows(1, 5),
}
