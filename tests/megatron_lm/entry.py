"""Ranks of Megatron-LM's own `pretrain_gpt.py`, unchanged, on a CPU.

They are forks of a process that has Megatron-LM loaded, since loading it costs more than a small training. The script
asks CUDA for things that the package's device seam does not answer; they are answered here. Two of its functions are
watched: `get_megatron_optimizer`, before which the weights are set by the rule of `megatron_sky.model.init` (so that no
weights have to be handed over), and `train_step`, of which every step is noted.
"""

import contextlib
import importlib
import inspect
import json
import os
import runpy
import socket
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace


def answer_for_cuda() -> None:
    import torch

    from megatron_sky.distributed import device

    device.setup(0, 1)
    properties = SimpleNamespace(major=8, minor=0, total_memory=80 << 30, name="cpu", multi_processor_count=1)
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 8
    torch.cuda.get_device_properties = lambda *_, **__: properties
    torch.cuda.get_device_capability = lambda *_, **__: (8, 0)
    torch.cuda.memory_stats = lambda *_, **__: {}
    memory = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "mem_get_info")
    for name in (*memory, "reset_peak_memory_stats", "set_stream", "ipc_collect"):
        setattr(torch.cuda, name, lambda *_, **__: 0)
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, lambda *_, **__: None)
    torch.cuda.Event.elapsed_time = lambda *_: 0.0
    torch.Tensor.pin_memory = lambda self, *_, **__: self
    torch.utils.data._utils.pin_memory.pin_memory = lambda data, device=None: data
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        setattr(torch.optim.Optimizer, name, lambda self: None)


class Watch:
    """Wraps `get_megatron_optimizer` and `train_step` of `megatron.training.training`; `facts` are one entry a step."""

    def __init__(self):
        from megatron.training import training

        self.training = training
        self.facts: list[dict] = []
        self.build, self.step = training.get_megatron_optimizer, training.train_step
        training.get_megatron_optimizer, training.train_step = self.build_optimizer, self.train_step

    def build_optimizer(self, *given, **named):
        """The optimizer of a model whose weights are set first."""
        from megatron.core.utils import unwrap_model
        from megatron.training import get_args

        from megatron_sky.model.init import init_weights

        chunks, args = inspect.signature(self.build).bind(*given, **named).arguments["model_chunks"], get_args()
        shape = SimpleNamespace(init_std=args.init_method_std, num_layers=args.num_layers)
        init_weights(unwrap_model(chunks), shape, args.seed)
        for chunk in unwrap_model(chunks):
            chunk.config.deallocate_pipeline_outputs = False  # gloo may not have sent them yet
        return self.build(*given, **named)

    def train_step(self, *given, **named):
        """A step; the learning rate and weight decays noted before it are those that it uses."""
        bound = inspect.signature(self.step).bind(*given, **named).arguments
        groups = [group for group in bound["optimizer"].param_groups if group["params"]]
        fact = {
            "lr": float(groups[0]["lr"]) if groups else None,
            "weight_decays": sorted({float(group["weight_decay"]) for group in groups}),
        }
        start = time.perf_counter()
        result = self.step(*given, **named)
        fact["seconds"] = time.perf_counter() - start
        fact["grad_norm"] = None if result[5] is None else float(result[5])
        if result[0]:
            fact["loss"] = float(next(iter(result[0].values())))
        self.facts.append(fact)
        return result


def load(megatron: Path) -> None:
    """Makes this process one whose forks are ranks of the copy of Megatron-LM in a folder."""
    sys.path.insert(0, str(megatron))
    answer_for_cuda()
    from megatron.core.datasets import utils

    utils.compile_helpers = _nothing
    with contextlib.suppress(ModuleNotFoundError):  # newer versions have none
        importlib.import_module("megatron.legacy.fused_kernels").load = _nothing  # builds none, but asks nvcc's version
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its own checkpoints hold more than torch would load
    for name in ("megatron.training.training", "gpt_builders", "model_provider"):
        importlib.import_module(name)


def run_ranks(script: Path, words: list[str], *, world_size: int, folder: Path) -> list[dict]:
    """The facts of every step, of the first rank that has losses. Raises RuntimeError where a rank fails."""
    port = free_port()
    facts = [folder / f"facts_{rank}.json" for rank in range(world_size)]
    logs = [folder / f"log_{rank}.txt" for rank in range(world_size)]
    ranks = []
    for rank in range(world_size):
        facts[rank].unlink(missing_ok=True)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        ranks.append(os.fork())
        if ranks[-1] == 0:
            os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()})
            os._exit(_rank(script, words, facts[rank], logs[rank]))
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]
    if any(codes):
        failed = next(rank for rank, code in enumerate(codes) if code)
        raise RuntimeError(f"exit codes {codes}:\n{logs[failed].read_text(encoding='utf-8')[-3000:]}")
    return json.loads(next(path for path in facts if path.exists()).read_text(encoding="utf-8"))


def _rank(script: Path, words: list[str], facts: Path, log: Path) -> int:
    """Runs the script in this process, which is a fork; returns an exit code."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    from megatron_sky.checkpoint.writers import writers_queue
    from megatron_sky.optim import adam

    if "--use-distributed-optimizer" in words:  # which can't load what it saved with torch's AdamW
        adam.install()
    writers_queue()  # of this rank alone; a save starts no process, which would load everything once more
    watch = Watch()
    code = run_script(script, words, watch)
    if not code and watch.facts and "loss" in watch.facts[0]:
        facts.write_text(json.dumps(watch.facts), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_script(script: Path, words: list[str], watch: Watch) -> int:
    """Runs the script in this process, in which `load` was called and whose steps are watched; returns an exit code."""
    assert watch.training is sys.modules["megatron.training.training"]
    sys.argv = [str(script), *words]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:  # --exit-interval ends so
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _nothing(*_: object) -> None: ...
