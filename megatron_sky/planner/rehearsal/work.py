"""What an operator computes, from its operands' shapes: products and attention, which make nearly all of a step."""

import math

import torch

_aten = torch.ops.aten
Done = tuple[str, tuple[int, ...], str, int]
"""(operator, shape, dtype, floating-point operations); shapes as in `result.Operation`."""


def name_of(func) -> str:
    """torch's name of an operator, without the prefix that it has for attention and the sign of work in place."""
    name = func._overloadpacket._qualified_op_name.removeprefix("aten::").rstrip("_")
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

    The backward pass of flash attention adds up the queries' gradient in fp32, rows rounded up to 128 and heads to 32
    (to 64 above 64), keeps a number for each row, and under grouped queries has a gradient of keys and values for each
    query head. Source: flash_attn's `mha_bwd` in torch.
    """
    if func._overloadpacket is not _aten._scaled_dot_product_flash_attention_backward:
        return 0
    query, key = args[1], args[2]
    b, heads, length, size = query.shape
    rows = -(-length // 128) * 128
    step = 32 if size <= 64 else 64
    accumulated = 4 * b * heads * rows * (-(-size // step) * step + 1)
    grouped = key.shape[1] != heads
    return accumulated + (2 * b * heads * key.shape[2] * size * key.element_size() if grouped else 0)


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
}
