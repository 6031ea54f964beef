"""Gradient norm and scaling over lists of tensors, for machines without Transformer Engine or apex.

megatron-core's own stand-ins take one device sync per tensor for the norm, and scale through a copy of each gradient.
These take no sync and scale in place. Their surface is that of apex's `amp_C` kernels.
"""

from collections.abc import Sequence

import torch

from megatron_sky.distributed import compat

TensorLists = Sequence[list[torch.Tensor]]


def l2_norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: TensorLists, per_tensor: bool, *_: object
) -> tuple[torch.Tensor, None]:
    """(L2 norm `[1]` of all tensors of the first list, None). Sizes and flag belong to the surface and are not used."""
    assert not per_tensor, "the norm of single tensors is not asked for by megatron-core"
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensor_lists[0]))).view(1), None


def scale(chunk_size: int, noop_flag: torch.Tensor, tensor_lists: TensorLists, factor: float) -> None:
    """Second list = first list * `factor`; in place where both name the same memory, as clipping does."""
    sources, targets = tensor_lists
    if any(source.data_ptr() != target.data_ptr() for source, target in zip(sources, targets, strict=True)):
        torch._foreach_copy_(targets, sources)
    if factor != 1.0:
        torch._foreach_mul_(targets, factor)


def install() -> None:
    """Gives these to megatron-core where it fell back to its own."""
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer

    if clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm:
        compat.replace_members(clip_grads, l2_norm_impl=l2_norm, multi_tensor_scale_impl=scale)
        compat.replace_members(optimizer, multi_tensor_scale_impl=scale)
