"""What differs between megatron-core 0.16 and 0.19, in one place.

Everything else calls megatron-core through its names, which both versions share.
"""

import inspect
from collections.abc import Callable


def call(function: Callable, /, *args, **kwargs):
    """Calls `function` without the keyword arguments its version does not know."""
    known = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in known}
    return function(*args, **kwargs)


def batch_on_this_cp_rank(batch: dict) -> dict:
    """megatron-core's slice of `batch` along the sequence for this context-parallel rank (two chunks, zigzag)."""
    from megatron.core.utils import get_batch_on_this_cp_rank

    return call(get_batch_on_this_cp_rank, batch, is_hybrid_cp=False)


def save_in_this_process() -> None:
    """Spares a save that waits for its writers the result-collecting process megatron-core would spawn (4 s)."""
    import queue

    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


def version() -> str:
    """The installed megatron-core's version."""
    from importlib.metadata import version as installed

    return installed("megatron-core")
