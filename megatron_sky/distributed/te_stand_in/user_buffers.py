"""Transformer Engine's user buffers: memory through which tensor-parallel ranks send while they multiply.

Source: `common/comm_gemm_overlap/` and `pytorch/csrc/extensions/comm_gemm_overlap.cpp` of Transformer Engine 2.8 to
2.20.
"""

import math

import torch

from megatron_sky.distributed.meta_device import Watch


class CommOverlapHelper:
    """Which ranks there are; `of_ranks`: those of one tensor-parallel group."""

    def __init__(self, world_group=None, intra_node_group=None):
        self.of_ranks = intra_node_group if intra_node_group is not None else world_group


class CommOverlapCore:
    """One buffer of the shape of a layer's whole input."""

    _is_p2p = False
    _watch: Watch

    def __init__(self, buffer_shape, buffer_dtype, helper, tp_size, *, comm_type=None, atomic_gemm=False, **settings):
        self._shape, self._size, self._helper = list(buffer_shape), tp_size, helper
        self._atomic = bool(atomic_gemm)
        self._buffer = torch.empty(self._allocated(comm_type), dtype=buffer_dtype, device="meta")
        self._watch.communicates_through(self._buffer)

    def _allocated(self, comm_type) -> list[int]:
        return self._shape

    def moved(self, comm_type) -> None:
        """Notes what is sent beside a product."""
        name = "all_gather_into_tensor" if getattr(comm_type, "name", "AG") == "AG" else "reduce_scatter_tensor"
        self._watch.communicated(name, self.get_buffer(), self._helper.of_ranks, ())

    def copy_into_buffer(self, input, local_chunk=False) -> None:
        """What is sent next."""
        expected = math.prod(self._shape) // (self._size if local_chunk else 1)
        if input.numel() != expected:
            raise ValueError(f"user buffers of {self._shape} have no room for {list(input.shape)}")

    def get_buffer(self, local_chunk=False, shape=None):
        rows = self._shape[0] // (self._size if local_chunk else 1)
        shape = list(shape) if shape is not None else [rows, *self._shape[1:]]
        return self._buffer.flatten()[: math.prod(shape)].view(shape)

    def get_communication_stream(self):
        stream = torch.cuda.current_stream()
        return stream, stream

    def get_tp_size(self) -> int:
        return self._size

    def is_atomic_gemm(self) -> bool:
        return self._atomic

    def is_p2p_overlap(self) -> bool:
        return self._is_p2p

    def is_fp8_ubuf(self) -> bool:
        return self._buffer.element_size() == 1

    def with_cublasmp(self) -> bool:
        return False


class CommOverlap(CommOverlapCore):
    """Sends in pieces that all ranks add up."""

    def __init__(self, buffer_shape, buffer_dtype, helper, tp_size, *args, **settings):
        super().__init__(buffer_shape, buffer_dtype, helper, tp_size, **settings)


class CommOverlapP2P(CommOverlapCore):
    """Sends around a ring. A sum is made of one part for each rank beside those that are its own."""

    _is_p2p = True

    def __init__(self, buffer_shape, buffer_dtype, helper, tp_size, comm_type, *args, **settings):
        super().__init__(buffer_shape, buffer_dtype, helper, tp_size, comm_type=comm_type, **settings)

    def _allocated(self, comm_type) -> list[int]:
        if comm_type.name == "AG":
            return self._shape
        return [self._shape[0] // self._size * (2 * self._size - 1), *self._shape[1:]]


def watched(kind: type[CommOverlapCore], watch: Watch) -> type[CommOverlapCore]:
    """The class `kind` whose buffers `watch` is told of."""
    return type(kind.__name__, (kind,), {"_watch": watch})
