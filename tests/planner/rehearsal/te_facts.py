"""What the installed Transformer Engine says of itself and of our models, found out in a process of its own."""

import functools
import inspect
import sys
from multiprocessing import get_context
from typing import Any

from megatron_sky.config import Config
from tests.planner.rehearsal.jobs import tiny

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0)]
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


@functools.cache
def facts() -> dict[str, Any]:
    spawn = get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_find_out, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def _find_out(answers) -> None:
    from megatron_sky.distributed import device
    from megatron_sky.planner.rehearsal.ledger import Ledger

    device.rehearse(Ledger(), te_capability=(9, 0))
    sys.stdout = sys.stderr
    config = tiny("parallel.tp_size=2", "parallel.sequence_parallel=true", "model.backend=te")
    names = {backend: sharded_state(config, backend) for backend in ("te", "torch")}
    refused = {capability: refused_recipes(capability) for capability in CAPABILITIES}
    answers.send({"sharded": names, "refused": refused, "calls": calls_that_do_not_fit()})


def sharded_state(config: Config, backend: str) -> dict[str, tuple]:
    """(kind, global shape, number format) of each entry by its name in a checkpoint."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from megatron_sky.distributed.context import open_fake_context
    from megatron_sky.model.build import build_model

    with open_fake_context(config.parallel, 0, 2) as context:
        built = build_model(
            config.model.model_copy(update={"backend": backend}),
            parallel=config.parallel,
            precision=config.precision,
            train=config.train,
            context=context,
            ddp=False,
            init=False,
        )
        state = built.chunks[0].sharded_state_dict()
    found = {}
    for entry in state.values():
        is_tensor = isinstance(entry, ShardedTensor)
        shape, dtype = (tuple(entry.global_shape), str(entry.dtype)) if is_tensor else (None, None)
        found[entry.key] = (type(entry).__name__, shape, dtype)
    return found


def refused_recipes(capability: tuple[int, int]) -> set[str]:
    """The recipes that Transformer Engine itself refuses on such a GPU."""
    import torch
    import transformer_engine.pytorch.utils as utils

    from megatron_sky.distributed.te_stand_in.install import Properties

    fp8 = sys.modules.get("transformer_engine.pytorch.quantization") or sys.modules["transformer_engine.pytorch.fp8"]
    torch.cuda.get_device_properties = lambda device=None: Properties(*capability)
    torch.cuda.get_device_capability = lambda device=None: capability
    for module in (utils, fp8):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
    checks = {
        "delayed": fp8.check_fp8_support,
        "tensorwise": fp8.check_fp8_support,
        "blockwise": fp8.check_fp8_block_scaling_support,
        "mxfp8": fp8.check_mxfp8_support,
    }
    return {recipe for recipe in RECIPES if not checks[recipe]()[0]}


def calls_that_do_not_fit() -> list[str]:
    """Our own calls into Transformer Engine, held to the signatures of the installed version."""
    import transformer_engine.pytorch.module.base as base
    from megatron.core.extensions.transformer_engine import TENorm
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    modes = [base.UserBufferQuantizationMode.NONE, base.UserBufferQuantizationMode.FP8]
    buffers = {"shape": [8, 8], "tp_size": 2, "bootstrap_backend": "nccl", "quantization_modes": modes}
    calls = [(base.initialize_ub, buffers), (base.destroy_ub, {}), (get_gpt_layer_with_transformer_engine_spec, {})]
    misfits = []
    for function, arguments in calls:
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            misfits.append(f"{function.__name__}: {error}")
    return misfits if TENorm is not None else [*misfits, "TENorm"]
