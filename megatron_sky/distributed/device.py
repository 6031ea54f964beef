"""The one seam to the accelerator: where CUDA is present it does nothing clever; where not, the CPU answers for it.

No other file of this package names the device type, but `cpu_emulation.py`, which has those answers, and
`meta_device.py` and `te_stand_in/`, which have a rehearsal's.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_sky.distributed import cpu_emulation, cpu_memory, cpu_products
from megatron_sky.errors import NodeError
from megatron_sky.files import replacing_by_name

if TYPE_CHECKING:
    import torch
    from torch.profiler import profile

# What is set for a GPU, unless the user's environment says otherwise, and why.
ENVIRONMENT = {
    "CUDA_DEVICE_MAX_CONNECTIONS": (
        "1",
        "one hardware queue: overlaps of communication and products rely on the order in which they are launched",
    ),
    "PYTORCH_CUDA_ALLOC_CONF": (
        "expandable_segments:True",
        "micro batches, validation and checkpoints ask for blocks of many sizes, which else leave holes",
    ),
    "NCCL_GRAPH_REGISTER": ("0", "NCCL in CUDA graphs must not register memory that expandable segments may move"),
}
DETERMINISTIC_ENVIRONMENT = {
    "NCCL_ALGO": ("Ring", "the algorithm of a reduction, and so its order, must not depend on what NCCL measures"),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", "torch asks for it: products in several streams must not share a workspace"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0", "Transformer Engine's attention backward must not add in any order"),
}

_state: dict[str, Any] = {"ready": False}


def is_ready() -> bool:
    """Whether `setup` was called in this process."""
    return _state["ready"]


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return not (_state.get("redirected") or _state.get("left_out")) and torch.cuda.is_available()


def collective_backend() -> str:
    """The process-group backend for this machine's tensors: nccl on GPUs, gloo on CPUs."""
    return "nccl" if has_gpu() else "gloo"


def setup(
    local_rank: int = 0, num_threads: int = 0, local_world_size: int = 1, deterministic: bool = False
) -> "torch.device":
    """Makes this process ready for megatron-core and returns its torch.device; a second call only returns it.

    Must run before `megatron.core` is imported. `num_threads`: see `choose_threads`. `deterministic`: a GPU
    runs only what gives the same result again.
    """
    import torch

    if not _state["ready"]:
        _silence_imports()
        for variable, (value, _) in (ENVIRONMENT | (DETERMINISTIC_ENVIRONMENT if deterministic else {})).items():
            os.environ.setdefault(variable, value)
        if has_gpu():
            torch.cuda.set_device(_gpu_of(local_rank, torch.cuda.device_count()))
            torch.use_deterministic_algorithms(deterministic)
        else:
            _state["products"] = "oneDNN" if cpu_products.choose_library() else "torch's default"
            cpu_memory.keep_freed_blocks()
            cpu_emulation.install(product_dtype)
            _state["redirected"] = True
            torch.set_num_threads(choose_threads(num_threads, local_world_size))
            # A forked process (a checkpoint's writer) has no OpenMP threads and would wait for them for ever.
            os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
        _state["ready"] = True
    return current()


def rehearse(watch, te_capability: tuple[int, int] | None = None) -> None:
    """Makes this process one that runs a GPU's branches and computes nothing: torch's meta device answers for CUDA.

    Must come before `megatron.core` is imported; the process can't train any more. `watch`: a `meta_device.Watch`,
    which is told of what a GPU would do and torch does not see. `te_capability`: Transformer Engine runs too, over a
    stand-in of its extension, as on a GPU of this compute capability.
    """
    import torch

    from megatron_sky.distributed import meta_device

    assert not _state["ready"], "a rehearsal needs a process of its own"
    _silence_imports()
    install_te = None
    if te_capability is not None:
        from megatron_sky.distributed.te_stand_in import install

        install_te = functools.partial(install.install, watch, te_capability)
        _state["te_capability"] = te_capability
    meta_device.install(watch, install_te)
    _state.update(redirected=True, rehearses=True, watch=watch, ready=True)
    torch.set_num_threads(1)


def begin_rehearsal(deterministic: bool) -> None:
    """Between two rehearsals of one process: the environment that `setup` makes for a GPU, which libraries read when
    they build, and nothing that the one before left in a library.
    """
    if "te_capability" in _state:
        from megatron_sky.distributed.te_stand_in.install import forget

        forget()
    os.environ.update({variable: value for variable, (value, _) in ENVIRONMENT.items()})
    for variable, (value, _) in DETERMINISTIC_ENVIRONMENT.items():
        if deterministic:
            os.environ[variable] = value
        else:
            os.environ.pop(variable, None)


def choose_threads(num_threads: int, local_world_size: int) -> int:
    """CPU threads of this process: `num_threads` where the recipe sets it, else what OMP_NUM_THREADS says, else its
    share of the cores among the `local_world_size` processes of the machine."""
    import torch

    if num_threads:
        return num_threads
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else share_of_cores(local_world_size)


def share_of_cores(local_world_size: int) -> int:
    """Cores for each of this machine's processes, at least one."""
    return max(1, available_cores() // local_world_size)


def _gpu_of(local_rank: int, num_gpus: int) -> int:
    """The GPU of a node's process. Under srun a process may see its own GPU alone (--gpus-per-task, --gpu-bind)."""
    if local_rank < num_gpus:
        return local_rank
    if num_gpus == 1 and "SLURM_STEP_ID" in os.environ and "LOCAL_RANK" not in os.environ:
        return 0
    raise NodeError(
        f"local rank {local_rank}: there is no GPU for it, as this process sees {num_gpus}, and each needs its own\n"
        f"  fix: start at most {num_gpus} on this machine, or train on its CPU with CUDA_VISIBLE_DEVICES= (empty)"
    )


def leave_gpus_out_below(num_processes: int) -> bool:
    """Has this process and those it starts compute on the CPU where GPUs are fewer than `num_processes`; whether so.

    Must come before anything is put on a GPU.
    """
    import torch

    too_few = has_gpu() and torch.cuda.device_count() < num_processes
    if too_few:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for those to come; this process's torch has looked already
        _state["left_out"] = True
    return too_few


def current() -> "torch.device":
    """This process's torch.device."""
    import torch

    if has_gpu():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("meta" if _state.get("rehearses") else "cpu")


def cpu() -> "torch.device":
    """The CPU as a torch.device, for what must not touch an accelerator."""
    import torch

    return torch.device("cpu")


def products_library() -> str | None:
    """What computes the CPU's fp32 products, see `cpu_products`; None on a GPU."""
    return _state.get("products")


@functools.cache
def product_dtype(dtype: "torch.dtype") -> "torch.dtype":
    """The torch.dtype in which matrix products of `dtype` are to be computed here: its own, or fp32.

    A CPU without arithmetic of its own for bf16 or fp16 computes their products up to a hundred times slower than
    fp32's; through fp32 they are also rounded once instead of at every block.
    """
    import torch

    if dtype not in (torch.bfloat16, torch.float16) or has_gpu() or _state.get("rehearses"):
        return dtype
    if not torch.backends.mkldnn.is_available():  # a build of torch without the library of such products
        return torch.float32
    ops = torch.ops.mkldnn
    own = ops._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported()
    return dtype if own else torch.float32


def flash_attention_takes(query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", dropout: float) -> bool:
    """Whether a GPU's flash kernel computes causal attention of these, `[b, heads, s, d]`; not on a CPU."""
    from torch.backends import cuda

    if query.device.type == "cpu":
        return False
    grouped = query.shape[1] != key.shape[1]
    # Not called causal, as torch refuses that where there are more keys than queries.
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, None, dropout, False, grouped))


def available_cores() -> int:
    """Cores this process may use: a container's or a job step's share, not the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def name() -> str:
    """The device's name for logs and for the peak table: the GPU's, or `cpu`."""
    import torch

    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def use(local_rank: int) -> "torch.device":
    """Makes the GPU of this local rank the current one, for what needs torch alone; its torch.device, or the CPU's."""
    import torch

    if has_gpu():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return current()


def gpus() -> list[dict]:
    """Name, memory (GiB) and compute capability of every GPU that torch sees."""
    import torch

    properties = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count() if has_gpu() else 0)
    ]
    return [
        {"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1), "capability": (gpu.major, gpu.minor)}
        for gpu in properties
    ]


def nccl_version() -> str | None:
    """The version of NCCL that torch brings; None in a CPU build."""
    import torch

    return ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None


def can_import(module: str) -> bool:
    """Whether a package for GPUs is there and fits: an import that fails for whatever cause says no."""
    import importlib

    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AssertionError):
        return False
    return True


def capability() -> tuple[int, int]:
    """The GPU's compute capability, as (9, 0) for Hopper."""
    import torch

    return torch.cuda.get_device_capability()


def cuda_version() -> str | None:
    """The CUDA version that torch was built with; None for a CPU build."""
    import torch

    return torch.version.cuda


def has_apex_gradients() -> bool:
    """Whether apex's extension that adds weight gradients to their buffer is installed for GPUs."""
    return (
        not _state.get("redirected", False) and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    )


def peak_memory_bytes() -> int:
    """Peak memory of this process so far: allocated on the GPU, or resident on the CPU."""
    import torch

    if has_gpu():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pin(tensor: "torch.Tensor") -> "torch.Tensor":
    """A CPU tensor in page-locked memory, from which a copy to a GPU runs beside the compute; as it is without a GPU.

    Pageable memory makes every copy wait, whatever `non_blocking` asks for.
    """
    return tensor.pin_memory() if has_gpu() else tensor


def synchronize() -> None:
    """Waits for queued kernels, so that a clock read afterwards tells the truth."""
    import torch

    if has_gpu():
        torch.cuda.synchronize()


def kernel_profile() -> "profile":
    """A torch profiler of this device's kernels and of the operators that start them, not yet started."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if has_gpu() else [ProfilerActivity.CPU]
    return profile(activities=activities)


def kernel_times(profile: "profile") -> list[tuple[str, int, float]]:
    """(name, calls, microseconds of its own) of a GPU's kernels, or of a CPU's operators.

    The ranges that we named hold others and are left out; so are, on a GPU, the operators that started the kernels.
    """
    from torch.autograd import DeviceType

    where, time = (DeviceType.CUDA, "self_device_time_total") if has_gpu() else (DeviceType.CPU, "self_cpu_time_total")
    return [
        (average.key, average.count, getattr(average, time))
        for average in profile.key_averages()
        if average.device_type == where and not average.is_user_annotation
    ]


@contextlib.contextmanager
def named_range(name: str) -> Iterator[None]:
    """Names what runs inside: in a profiler's trace, for Nsight Systems (NVTX) on a GPU, for a rehearsal's watch."""
    import torch

    if "watch" in _state:
        with _state["watch"].phase(name):
            yield
        return
    with torch.cuda.nvtx.range(name) if has_gpu() else contextlib.nullcontext(), torch.profiler.record_function(name):
        yield


def record_allocations() -> None:
    """Keeps, from here on, what asked for which GPU memory; nothing on a CPU."""
    import torch

    if has_gpu():
        torch.cuda.memory._record_memory_history(max_entries=100_000)


def write_allocations(path: Path) -> bool:
    """Writes what `record_allocations` kept; whether there was anything."""
    import torch

    if not has_gpu():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_by_name(path) as beside:
        torch.cuda.memory._dump_snapshot(beside)
    return True


def seed(value: int) -> None:
    """Seeds the default generators of CPU and device."""
    import torch

    torch.manual_seed(value)  # seeds the GPUs as well where there are any


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Tensors made inside take no memory: for building a model only to look at its shapes."""
    import torch

    with torch.device("meta"):
        yield


def _silence_imports() -> None:
    warnings.filterwarnings("ignore", message=r".*(Transformer Engine|transformer_engine|Apex|apex).*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    # megatron-core's advice to those who call it (deprecated arguments, absent extras) is not the user's to follow.
    warnings.filterwarnings("ignore", module=r"megatron\.core.*")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    # megatron-core imports it; a CUDA toolkit on a machine without a GPU is nothing to warn of, at every start.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
