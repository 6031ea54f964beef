"""Transformer Engine's 8-bit tensors, as its extension makes them: data, transposed data and scales, by recipe.

Source: `pytorch/csrc/quantizer.cpp` of Transformer Engine 2.8 to 2.20. Which of the two directions is kept is the
quantizer's (`rowwise_usage`, `columnwise_usage`); a Blackwell GPU multiplies per-tensor scaled numbers in any direction
and keeps no transposed copy of them.
"""

import functools
import importlib
import inspect
import math
from typing import Any

import torch

_BLOCK = 128  # numbers of a block on one side, blockwise
_MX_BLOCK = 32  # numbers with one scale, mxfp8
_TENSORS = {
    "Float8Quantizer": ("float8_tensor", "Float8Tensor"),
    "Float8CurrentScalingQuantizer": ("float8_tensor", "Float8Tensor"),
    "MXFP8Quantizer": ("mxfp8_tensor", "MXFP8Tensor"),
    "Float8BlockQuantizer": ("float8_blockwise_tensor", "Float8BlockwiseQTensor"),
}


class UnknownToRehearsal(NotImplementedError):
    """The program asks Transformer Engine's extension for what a rehearsal does not know."""


def kind_of(quantizer) -> str:
    """The quantizer's class. Raises UnknownToRehearsal where it is of no recipe that can be asked for."""
    name = type(quantizer).__name__
    if name not in _TENSORS:
        raise UnknownToRehearsal(f"{name}: tensors of this quantizer are not known to a rehearsal")
    return name


def empty(quantizer, shape, dtype: torch.dtype, any_direction: bool) -> Any:
    """An 8-bit tensor of `shape` that stands for one of `dtype`. `any_direction`: the GPU needs no transposed copy."""
    kind, shape = kind_of(quantizer), tuple(shape)
    tensor_class, storage_class = _classes(kind)
    parts = _PARTS[kind](quantizer, shape, any_direction)
    parts |= {
        "fp8_dtype": quantizer.dtype,
        "quantizer": quantizer,
        "fake_dtype": dtype,
        "with_gemm_swizzled_scales": getattr(quantizer, "optimize_for_gemm", False),
        "is_2D_scaled": getattr(quantizer, "block_scaling_dim", 1) == 2,
        "data_format": _data_format(quantizer),
    }
    parts = {name: value for name, value in parts.items() if name in _known(storage_class)}
    if quantizer.internal:
        return storage_class(**parts)
    parts.pop("fake_dtype", None)
    face = {"device": _device(), "stride": _strides(shape)}
    face = {name: value for name, value in face.items() if name in _known(tensor_class.__bases__[1])}
    return tensor_class(shape=shape, dtype=dtype, **parts, **face)


def shape_of(tensor) -> tuple[int, ...]:
    """The shape that a tensor stands for, whichever of its two directions is kept."""
    if isinstance(tensor, torch.Tensor):
        return tuple(tensor.shape)
    for name in ("_data", "_rowwise_data"):
        if getattr(tensor, name, None) is not None:
            return tuple(getattr(tensor, name).shape)
    if getattr(tensor, "_transpose", None) is not None:
        first, *rest = tensor._transpose.shape
        return (*rest, first)
    columns = tensor._columnwise_data
    if columns is None:
        raise RuntimeError(f"{type(tensor).__name__} holds no data in either direction")
    compact = getattr(getattr(tensor, "_data_format", None), "name", "") == "COMPACT"
    if type(tensor).__name__.startswith("MXFP8") or compact:
        return tuple(columns.shape)
    first, *rest = columns.shape
    return (*rest, first)


def is_quantized(tensor) -> bool:
    """Whether its numbers have 8 bits."""
    return hasattr(tensor, "_fp8_dtype")


def fill(tensor, quantizer, any_direction: bool) -> None:
    """Makes an 8-bit tensor hold what the quantizer wants in it now, before it is written anew."""
    if not kind_of(quantizer).startswith("Float8") or not hasattr(tensor, "_transpose"):
        return  # blocks are written where they are
    shape = tuple(tensor.size())
    parts = _PARTS[kind_of(quantizer)](quantizer, shape, any_direction)
    for name, part in (("_data", parts["data"]), ("_transpose", parts["data_transpose"])):
        if part is None or getattr(tensor, name) is None:
            setattr(tensor, name, part)
    tensor._transpose_invalid = parts["data_transpose"] is None


def _per_tensor(quantizer, shape, any_direction: bool) -> dict[str, Any]:
    transposed = quantizer.columnwise_usage and not any_direction
    return {
        "data": _bytes(shape) if quantizer.rowwise_usage or any_direction else None,
        "data_transpose": _bytes((shape[-1], *shape[:-1])) if transposed else None,
        "fp8_scale_inv": torch.empty(1, dtype=torch.float32, device=_device()),
    }


def _mxfp8(quantizer, shape, any_direction: bool) -> dict[str, Any]:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if rows % _MX_BLOCK or columns % _MX_BLOCK:
        raise ValueError(f"MXFP8 requires tensor dims that are divisible by {_MX_BLOCK} (got shape={shape})")
    row_scales = (_up(rows, 128), _up(columns // _MX_BLOCK, 4))
    column_scales = (_up(rows // _MX_BLOCK, 4), _up(columns, 128))
    return _by_direction(
        _bytes(shape) if quantizer.rowwise_usage else None,
        _bytes(row_scales) if quantizer.rowwise_usage else None,
        _bytes(shape) if quantizer.columnwise_usage else None,
        _bytes(column_scales) if quantizer.columnwise_usage else None,
    )


def _blockwise(quantizer, shape, any_direction: bool) -> dict[str, Any]:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    compact = getattr(quantizer, "all_gather_usage", False)
    if quantizer.block_scaling_dim == 2:
        row_scales = (-(-rows // _BLOCK), _up(-(-columns // _BLOCK), 4))
        column_scales = (-(-columns // _BLOCK), _up(-(-rows // _BLOCK), 4))
    else:
        row_scales = (rows, -(-columns // _BLOCK)) if compact else (-(-columns // _BLOCK), _up(rows, 4))
        column_scales = (-(-rows // _BLOCK), columns if compact else _up(columns, 4))
    transposed = shape if compact else (shape[-1], *shape[:-1])
    return _by_direction(
        _bytes(shape) if quantizer.rowwise_usage else None,
        _numbers(row_scales) if quantizer.rowwise_usage else None,
        _bytes(transposed) if quantizer.columnwise_usage else None,
        _numbers(column_scales) if quantizer.columnwise_usage else None,
    )


def _by_direction(rows, row_scales, columns, column_scales) -> dict[str, Any]:
    return {
        "rowwise_data": rows,
        "rowwise_scale_inv": row_scales,
        "columnwise_data": columns,
        "columnwise_scale_inv": column_scales,
    }


_PARTS = {
    "Float8Quantizer": _per_tensor,
    "Float8CurrentScalingQuantizer": _per_tensor,
    "MXFP8Quantizer": _mxfp8,
    "Float8BlockQuantizer": _blockwise,
}


@functools.cache
def _classes(kind: str) -> tuple[type, type]:
    """(tensor, its storage without a tensor's face) of a quantizer's class."""
    module, name = _TENSORS[kind]
    tensor = getattr(importlib.import_module(f"transformer_engine.pytorch.tensor.{module}"), name)
    return tensor, tensor.__bases__[0]


@functools.cache
def _known(owner: type) -> frozenset[str]:
    """Names of the arguments with which a class is made; they differ between versions."""
    return frozenset(inspect.signature(owner.__new__).parameters)


def _data_format(quantizer):
    import transformer_engine_torch as extension  # the stand-in

    formats = extension.Float8BlockScaleTensorFormat
    return formats.COMPACT if getattr(quantizer, "all_gather_usage", False) else formats.GEMM_READY


def _device() -> torch.device:
    return torch.device("meta")


def _bytes(shape) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=torch.uint8, device=_device())


def _numbers(shape) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32, device=_device())


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _strides(shape) -> list[int]:
    return [math.prod(shape[place + 1 :]) for place in range(len(shape))]
