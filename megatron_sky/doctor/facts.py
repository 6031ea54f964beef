"""What is installed and plugged in, as plain data that goes into JSON."""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_sky.distributed import device, requirements
from megatron_sky.distributed.machine import this_machine
from megatron_sky.files import read_text
from megatron_sky.monitor.throughput import gpu_peak
from megatron_sky.versions import installed

PACKAGES = {
    "megatron-core": "megatron-core",
    "transformer-engine": "transformer-engine",
    "apex": "apex",
    "flash-attn": "flash-attn",
    "nltk": "nltk",
    "tensorboard": "tensorboard",
    "transformers": "transformers",
    "psutil": "psutil",
    "einops": "einops",
    "sentencepiece": "sentencepiece",
}


def gather() -> dict:
    """Every fact; no process is started but nvidia-smi, where there is one."""
    machine = this_machine()
    backend, reason = _backend()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": device.available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch": machine.torch,
        "torch_cuda": machine.cuda_version,
        "driver": _driver(),
        "gpus": [_with_peak(gpu) for gpu in device.gpus()],
        "nvlink": nvlinks(_output("nvidia-smi", "topo", "-m")),
        "infiniband": infiniband(Path("/sys/class/infiniband")),
        "nccl": device.nccl_version(),
        "packages": {name: installed(package) for name, package in PACKAGES.items()},
        "requirements": [asdict(requirement) for requirement in requirements.requirements()],
        "transformer_engine_cuda": machine.te_cuda,
        "backend": backend,
        "backend_reason": reason,
        "adam": _adam(),
        "gradient_accumulation_fusion": machine.apex,
        "environment": {name: os.environ.get(name) for name in device.ENVIRONMENT},
    }


def _backend() -> tuple[str, str]:
    from megatron_sky.config.schema import ModelConfig
    from megatron_sky.model.backends import choose_backend

    return choose_backend(ModelConfig.model_validate({"preset": "tiny"}), device.has_gpu())


def _adam() -> str:
    """Which Adam a run would use; megatron-core prefers Transformer Engine's to apex's."""
    if device.has_gpu():
        for name, module in (
            ("Transformer Engine", "transformer_engine.pytorch.optimizers"),
            ("apex", "apex.optimizers"),
        ):
            if device.can_import(module):
                return f"{name}'s FusedAdam"
    return "torch's fused AdamW"


def _with_peak(gpu: dict) -> dict:
    peak = gpu_peak(gpu["name"])
    known = {} if peak is None else {name: getattr(peak, name) for name in ("bf16", "fp16", "fp8")}
    return gpu | {"peak_tflops": known or None}


def _driver() -> str | None:
    text = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return text.split("\n")[0].strip() or None


def nvlinks(topology: str) -> int | None:
    """The most NVLinks between two GPUs, from `nvidia-smi topo -m`; 0: none; None: not known."""
    if "GPU0" not in topology:
        return None
    return max((int(count) for count in re.findall(r"\bNV(\d+)\b", topology)), default=0)


def infiniband(folder: Path) -> list[dict]:
    """Ports of InfiniBand and RoCE adapters as Linux lists them: device, port, state and rate in words."""
    ports = sorted(folder.glob("*/ports/*")) if folder.is_dir() else []
    return [
        {"device": port.parts[-3], "port": port.name, "state": _word(port / "state"), "rate": _word(port / "rate")}
        for port in ports
    ]


def _word(path: Path) -> str:
    try:
        return read_text(path).strip().split(": ")[-1]
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _output(*command: str) -> str:
    """What the command prints; nothing where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""  # a driver that hangs; that torch sees no GPU then is told by the findings
