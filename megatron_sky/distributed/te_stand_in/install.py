"""Puts the stand-in where Transformer Engine's Python half looks for its extension, and imports that half.

What else it asks of a GPU is answered here: its compute capability, its number of processors, CUDA's version, whether
two tensors lie in one piece of memory. It lasts for the process's life: see `device.rehearse`.
"""

import contextlib
import functools
import importlib.machinery
import itertools
import os
import sys
import types
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from megatron_sky.distributed import compat
from megatron_sky.distributed.meta_device import Watch
from megatron_sky.distributed.te_stand_in import names, quantized, user_buffers
from megatron_sky.distributed.te_stand_in.attention import Attention
from megatron_sky.distributed.te_stand_in.kernels import WRITES_IN_PLACE, Kernels
from megatron_sky.versions import installed, release

EXTENSION = "transformer_engine_torch"
_CUDA = "13.0"  # where torch was built without
_CUBLAS, _CUDNN = 130_100, 92_400  # as their own libraries tell their versions
_BLACKWELL = (10, 0)


@dataclass(frozen=True)
class Properties:
    """What a rehearsed GPU says of itself."""

    major: int
    minor: int
    multi_processor_count: int = 132
    total_memory: int = 80 << 30
    L2_cache_size: int = 50 << 20
    name: str = "a rehearsed GPU"


def install(watch: Watch, capability: tuple[int, int]) -> None:
    """Must come after the meta device answers for CUDA and before `megatron.core` is imported.

    `capability`: the compute capability of the GPU that is rehearsed, by which Transformer Engine's checks go.
    """
    _answer_for_the_gpu(capability)
    _answer_addresses()
    modules: dict[str, Any] = sys.modules
    modules[EXTENSION] = extension(watch, capability, release(installed("transformer-engine")))
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its package then loads no library of CUDA's
    os.environ["NVTE_TORCH_COMPILE"] = "0"  # nothing is compiled in a rehearsal
    import transformer_engine.common

    compat.replace_members(transformer_engine.common, load_framework_extension=lambda framework: None)
    import transformer_engine.pytorch

    _keep_norms_as_they_are()
    _know_devices_by_number()


def _keep_norms_as_they_are() -> None:
    """Weights on meta are to Transformer Engine's own norms ones that wait for memory: it would make them anew."""
    from transformer_engine.pytorch.ops.basic import LayerNorm, RMSNorm

    for norm in (LayerNorm, RMSNorm):
        compat.replace_members(norm, pre_first_fuser_forward=lambda self: None)


def _know_devices_by_number() -> None:
    """megatron-core says `device=0`, which is no device to a torch that was built without CUDA."""
    for name, module in list(sys.modules.items()):
        if name.startswith("transformer_engine.pytorch.") and hasattr(module, "canonicalize_device"):
            compat.replace_members(module, canonicalize_device=_canonical_device)


def _canonical_device(device: "torch.device | str | int | None") -> torch.device:
    if isinstance(device, int):
        return torch.device("cuda", device)
    return torch.device("cuda", 0) if device is None or str(device) == "cuda" else torch.device(device)


def forget() -> None:
    """Between two rehearsals of a process: buffers, scales and groups of the one before are not the next one's."""
    from transformer_engine.pytorch.module import base

    base.FP8GlobalStateManager.reset()
    if base._ub_communicators is not None:
        base.destroy_ub()


def extension(watch: Watch, capability: tuple[int, int], version: tuple[int, ...]) -> types.ModuleType:
    """The stand-in for `version` of Transformer Engine."""
    module = types.ModuleType(EXTENSION)
    module.__spec__ = importlib.machinery.ModuleSpec(EXTENSION, None)
    backends = names.attention_backends(version)
    members: dict[str, Any] = {**names.ENUMS, "NVTE_Fused_Attn_Backend": backends}
    kinds = (Kernels(watch, any_direction=capability >= _BLACKWELL), Attention(watch, capability, backends))
    for kind in kinds:
        for name in (name for name in dir(kind) if not name.startswith("_")):
            members[name] = _named(watch, name, getattr(kind, name))
    for name in WRITES_IN_PLACE:
        members[name] = _named(watch, name, lambda *args, **kwargs: None)
    members |= {
        "CommOverlapHelper": user_buffers.CommOverlapHelper,
        "CommOverlapCore": user_buffers.CommOverlapCore,
        "CommOverlap": user_buffers.watched(user_buffers.CommOverlap, watch),
        "CommOverlapP2P": user_buffers.watched(user_buffers.CommOverlapP2P, watch),
        "get_cublasLt_version": lambda: _CUBLAS,
        "get_cudnn_version": lambda: _CUDNN,
        "get_num_cublas_streams": lambda: 4,
        "get_stream_priority_range": lambda device_id=-1: (0, -5),
        "device_supports_multicast": lambda device_id=-1: capability >= (9, 0),
        "ubuf_built_with_mpi": lambda: False,
        "ep_zero_copy_supported": lambda: False,
    }
    vars(module).update(members)
    vars(module)["__getattr__"] = functools.partial(_unknown, watch)
    return module


def _named(watch: Watch, name: str, function):
    @functools.wraps(function)
    def kernel(*args, **kwargs):
        with watch.kernel(name):
            return function(*args, **kwargs)

    return kernel


def _unknown(watch: Watch, name: str):
    """A function that can be named, as imports do, and fails when it is called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*args, **kwargs):
        with watch.kernel(name):
            raise quantized.UnknownToRehearsal(f"Transformer Engine's kernel {name} is not known to a rehearsal")

    kernel.__name__ = name
    return kernel


def _answer_for_the_gpu(capability: tuple[int, int]) -> None:
    properties = Properties(*capability)
    compat.replace_members(
        torch.cuda,
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        device=lambda device: contextlib.nullcontext(),
        get_device_properties=lambda device=None: properties,
        get_device_capability=lambda device=None: capability,
        get_device_name=lambda device=None: properties.name,
        is_current_stream_capturing=lambda: False,
    )
    if torch.version.cuda is None:
        compat.replace_members(torch.version, cuda=_CUDA)
        compat.replace_members(torch.distributed, is_backend_available=lambda backend: True)


def _answer_addresses() -> None:
    """Addresses on meta, where all are 0: Transformer Engine tells by them whether tensors are parts of one."""
    numbers = itertools.count(1)
    known: dict[int, tuple[int, weakref.ref]] = {}
    tensor_address, storage_address = torch.Tensor.data_ptr, torch.UntypedStorage.data_ptr

    def of_storage(storage) -> int:
        if storage.device.type != "meta":
            return storage_address(storage)
        if storage.nbytes() == 0:
            return 0
        key = storage._cdata
        if key not in known or known[key][1]() is None:
            known[key] = (next(numbers) << 42, weakref.ref(storage, lambda reference: known.pop(key, None)))
        return known[key][0]

    def of_tensor(tensor) -> int:
        if not tensor.is_meta:
            return tensor_address(tensor)
        return of_storage(tensor.untyped_storage()) + tensor.storage_offset() * tensor.element_size()

    compat.replace_members(torch.Tensor, data_ptr=of_tensor)
    compat.replace_members(torch.UntypedStorage, data_ptr=of_storage)
