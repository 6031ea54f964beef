"""Before the first step: what all ranks must have in common, and whether the disk can hold what the run will write."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_sky.checkpoint.saver import checkpoint_bytes
from megatron_sky.config import Config, dump_config
from megatron_sky.config.validate import backend_problems
from megatron_sky.data.tokens.sources import OpenSource
from megatron_sky.distributed import device
from megatron_sky.distributed.machine import this_machine
from megatron_sky.errors import Problem, RunError
from megatron_sky.model.backends import choose_backend
from megatron_sky.model.backends.support import machine_problems
from megatron_sky.trainer.run_record import versions


def rank_facts(config: Config, sources: Sequence[OpenSource]) -> dict:
    """What this rank runs: package versions, the recipe (hash), and each source's size and description (hash)."""
    facts: dict = {f"version of {name}": version for name, version in versions().items()}
    facts["the recipe"] = _short_hash(dump_config(config))
    for source, opened in zip(config.data.train, sources, strict=True):
        facts[f"data of {source.name} (tokens, documents, description)"] = [
            opened.tokens.num_tokens,
            opened.tokens.num_documents,
            _short_hash(repr(opened.meta)),
        ]
    return facts


def find_machine_problems(config: Config) -> list[Problem]:
    """Everything in the recipe that this machine, or the backend chosen on it, can't do. After `device.setup`.

    Raises ConfigError where the backend that the recipe asks for can't be used here.
    """
    backend, _ = choose_backend(config.model, device.has_gpu())
    problems = backend_problems(config, backend)
    return problems + machine_problems(this_machine(), backend, precision=config.precision, kernels=config.kernels)


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
