"""What the installed Transformer Engine says of itself and of our models, found out in a process of its own."""

import ast
import functools
import importlib
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import megatron_sky
from megatron_sky.config import Config
from tests.planner.rehearsal.jobs import GPT, tiny

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
MODELS = {
    "tp2 sp": ["parallel.tp_size=2", "parallel.sequence_parallel=true"],
    "grouped queries, tied": ["model.num_query_groups=2", "model.tie_embeddings=true"],
    "gpt": GPT,
}
_OWNED = re.compile(r"(megatron\.core\.extensions\.)?transformer_engine(\.\w+)*")


@functools.cache
def facts() -> dict[str, Any]:
    """Raises what fails there, with its traceback."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_find_out).result()


def _find_out() -> dict[str, Any]:
    from megatron_sky.distributed import device
    from megatron_sky.planner.rehearsal.ledger import Ledger

    device.rehearse(Ledger(), te_capability=(9, 0))
    device.begin_rehearsal(deterministic=False)
    sys.stdout = sys.stderr
    return {
        "sharded": {name: sharded_states(overrides) for name, overrides in MODELS.items()},
        "names": set(names_of_our_own()),
        "lacking": [name for name in names_of_our_own() if not _is_there(name)],
        "buffers": {fp8: user_buffers(fp8) for fp8 in (None, *RECIPES)},
        "refused": {capability: refused_recipes(capability) for capability in CAPABILITIES},
    }


def sharded_states(overrides: list[str]) -> dict[str, dict[str, tuple]]:
    """By backend, (kind, global shape, number format) of each entry by its name in a checkpoint."""
    from megatron_sky.distributed.context import open_fake_context

    states = {}
    for backend in ("te", "torch"):
        config = tiny(*overrides, f"model.backend={backend}")
        with open_fake_context(config.parallel, 0, config.parallel.tp_size) as context:
            states[backend] = _sharded_state(config, context)
    return states


def _sharded_state(config: Config, context) -> dict[str, tuple]:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from tests.models import build

    context.seed_step(config.train.seed, 0)  # megatron-core's modules draw weights when they are made
    built = build(config, context, ddp=False, init=False)
    assert built.backend == config.model.backend
    found = {}
    for entry in built.chunks[0].sharded_state_dict().values():
        is_tensor = isinstance(entry, ShardedTensor)
        shape, dtype = (tuple(entry.global_shape), str(entry.dtype)) if is_tensor else (None, None)
        found[entry.key] = (type(entry).__name__, shape, dtype)
    return found


def names_of_our_own() -> Iterator[str]:
    """The dotted names of Transformer Engine, and of megatron-core's modules over it, that our code asks for."""
    for path in Path(megatron_sky.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        full: dict[str, str] = {}  # names in this file
        for node in nodes:
            if isinstance(node, ast.Import):
                full |= {name.name: name.name for name in node.names if _OWNED.fullmatch(name.name)}
            elif isinstance(node, ast.ImportFrom) and _OWNED.fullmatch(node.module or ""):
                full |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
                full |= {node.value: node.value} if _OWNED.fullmatch(node.value) else {}
        yield from full.values()
        for node in nodes:
            first, _, rest = ast.unparse(node).partition(".") if isinstance(node, ast.Attribute) else ("", "", "")
            if first in full and rest.replace(".", "").isidentifier():
                yield f"{full[first]}.{rest}"


def _is_there(name: str) -> bool:
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for length, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


def user_buffers(fp8: str | None) -> list[str]:
    """Our call that makes user buffers, held to the installed signature: the keywords that it gives."""
    from transformer_engine.pytorch.module import base

    from megatron_sky.model.backends.te import open_user_buffers

    narrow = [] if fp8 is None else [f"precision.fp8={{recipe: {fp8}, first_last_layers_bf16: true}}"]
    config = tiny("model.backend=te", "parallel.tp_size=2", "parallel.sequence_parallel=true", *narrow)
    with mock.patch.object(base, "initialize_ub", autospec=True) as made:
        open_user_buffers(config.model, parallel=config.parallel, precision=config.precision, train=config.train)
    return sorted(made.call_args.kwargs)


def refused_recipes(capability: tuple[int, int]) -> set[str]:
    """The recipes that Transformer Engine itself refuses on such a GPU."""
    import torch
    import transformer_engine.pytorch.utils as utils

    from megatron_sky.distributed.te_stand_in.install import Properties

    fp8 = sys.modules.get("transformer_engine.pytorch.quantization") or sys.modules["transformer_engine.pytorch.fp8"]
    torch.cuda.get_device_properties = lambda device=None: Properties(*capability)
    torch.cuda.get_device_capability = lambda device=None: capability
    for module in (utils, fp8):  # what it found out for the GPU before
        for name, value in list(vars(module).items()):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
            elif name.endswith("_SUPPORT"):
                setattr(module, name, None)
    checks = {
        "delayed": fp8.check_fp8_support,
        "tensorwise": fp8.check_fp8_support,
        "blockwise": fp8.check_fp8_block_scaling_support,
        "mxfp8": fp8.check_mxfp8_support,
    }
    return {recipe for recipe in RECIPES if not checks[recipe]()[0]}
