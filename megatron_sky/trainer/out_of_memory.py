"""When a GPU runs out of memory: what the recipe could change, in order of what it costs, instead of a traceback."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from megatron_sky.config import Config
from megatron_sky.distributed import device
from megatron_sky.distributed.topology import Layout
from megatron_sky.errors import RunError


@contextlib.contextmanager
def explained(config: Config, layout: Layout, *, rank: int, run_dir: Path) -> Iterator[None]:
    """Turns torch's out-of-memory error into a RunError with three fixes, after writing the snapshot asked for."""
    import torch

    if config.profile.memory_snapshot:
        device.record_allocations()
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = run_dir / "profile" / f"out_of_memory_rank_{rank:05d}.pickle"
        snapshot = "profile.memory_snapshot=true writes what the memory was used for"
        if config.profile.memory_snapshot and device.write_allocations(where):
            snapshot = f"what it was used for is in {where} (open it at pytorch.org/memory_viz)"
        choices = "\n".join(f"  fix {number}: {fix}" for number, fix in enumerate(fixes(config, layout)[:3], 1))
        reason = str(error).split(". ")[0]
        raise RunError(f"rank {rank}: the GPU's memory does not suffice: {reason}\n{choices}\n  {snapshot}") from error


def fixes(config: Config, layout: Layout) -> list[str]:
    """What would save memory and is not done yet, the cheapest first: never fewer than three."""
    p, t, m = config.parallel, config.train, config.model
    choices = []
    if not p.distributed_optimizer and layout.dp_size * layout.cp_size > 1:
        choices.append("parallel.distributed_optimizer=true: optimizer state is divided by the data-parallel ranks")
    if p.tp_size > 1 and not p.sequence_parallel:
        choices.append("parallel.sequence_parallel=true: norms and dropouts hold a part of the sequence each")
    if t.micro_batch_size > 1:
        choices.append(f"train.micro_batch_size={t.micro_batch_size // 2}: half the activations, same global batch")
    if t.recompute == "none":
        choices.append("train.recompute=selective: attention is computed again in the backward pass")
    if t.recompute != "full":
        choices.append("train.recompute=full: only a layer's input is kept; about a third more computing")
    if m.num_attention_heads % (2 * p.tp_size) == 0 and m.query_groups % (2 * p.tp_size) == 0:
        choices.append(
            f"parallel.tp_size={2 * p.tp_size} (with sequence_parallel): half the weights and activations a rank"
        )
    if m.num_layers % (2 * p.pp_size * p.vpp_size) == 0:
        choices.append(f"parallel.pp_size={2 * p.pp_size}: half the layers a rank")
    if m.seq_length % (4 * p.cp_size) == 0:
        choices.append(f"parallel.cp_size={2 * p.cp_size}: half the sequence's activations a rank")
    if config.precision.grad_reduce_in_fp32:
        choices.append("precision.grad_reduce_in_fp32=false: 2 bytes a parameter less, with coarser sums")
    return [*choices, "more GPUs, with a larger data-parallel size", "GPUs with more memory", "a smaller model"]
