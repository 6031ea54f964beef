"""Before the first step: what all ranks must have in common, and whether the disk can hold what the run will write."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_sky.checkpoint.saver import checkpoint_bytes
from megatron_sky.config import Config, dump_config
from megatron_sky.config.validate import backend_problems
from megatron_sky.data.loader import TrainData
from megatron_sky.distributed import device
from megatron_sky.distributed.machine import this_machine
from megatron_sky.errors import ConfigError, RunError
from megatron_sky.model.backends import choose_backend
from megatron_sky.model.backends.support import machine_problems
from megatron_sky.trainer.run_folder import versions


def rank_facts(config: Config, data: TrainData) -> dict:
    """What this rank runs: package versions, the recipe (hash), and each source's size and description (hash)."""
    facts: dict = {f"version of {name}": version for name, version in versions().items()}
    facts["the recipe"] = _short_hash(dump_config(config))
    for source, file, meta in zip(config.data.train, data.files, data.metas, strict=True):
        facts[f"data of {source.name} (tokens, documents, description)"] = [
            file.num_tokens,
            file.num_documents,
            _short_hash(repr(meta)),
        ]
    return facts


def check_machine(config: Config) -> None:
    """Raises ConfigError with everything in the recipe that this machine, or the backend chosen on it, can't do."""
    backend, _ = choose_backend(config.model, device.has_gpu())
    problems = backend_problems(config, backend)
    problems += machine_problems(this_machine(), backend, precision=config.precision, kernels=config.kernels)
    if problems:
        raise ConfigError(problems)


def check_disk(config: Config, run_dir: Path, warn: Callable[[str], None]) -> None:
    """Raises RunError where not one checkpoint fits; warns where not all that retention keeps do."""
    needed, free = checkpoint_bytes(config), shutil.disk_usage(run_dir).free
    if free < needed:
        raise RunError(
            f"train.run_dir = {str(run_dir)!r}: {free:,} bytes are free, one checkpoint needs about {needed:,}\n"
            f"  fix: free space there, or choose another folder"
        )
    kept = config.checkpoint.keep_last
    if kept is not None and free < needed * (kept + 1):
        warn(f"{run_dir} has room for {free // needed} checkpoints; checkpoint.keep_last = {kept} needs {kept + 1}")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
