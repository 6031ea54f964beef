"""The rehearsal itself, in a process that does nothing else: the trainer's own build, steps and validation, on meta.

One step without counting comes first, after which the optimizer has its moments; the second is the one that counts.
"""

import gc
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from megatron_sky.config import Config
from megatron_sky.data.loader import Batch, DocumentBounds, make_batch
from megatron_sky.distributed import device
from megatron_sky.distributed.context import ParallelContext, open_fake_context
from megatron_sky.distributed.topology import Layout
from megatron_sky.optim.schedule import global_batch_size_at
from megatron_sky.optim.update import parts_of
from megatron_sky.planner.rehearsal.ledger import Ledger
from megatron_sky.planner.rehearsal.result import (
    GRADIENTS,
    OPTIMIZER,
    OTHER,
    WEIGHTS,
    Operation,
    Rehearsal,
    Traffic,
    Wait,
)
from megatron_sky.trainer.build import build_runner
from megatron_sky.trainer.step import StepRunner

_DOCUMENT = 512  # tokens of each document in a rehearsed batch, where documents are kept apart
_ONCE_A_STEP = ("DP", "DP x CP")  # groups whose traffic within forward and backward does not grow with micro batches
_NARROW_PARTS = (
    *("_data", "_transpose", "_scale_inv"),
    *("_rowwise_data", "_rowwise_scale_inv", "_columnwise_data", "_columnwise_scale_inv"),
)
_COMPUTING = "forward and backward"


def rehearse_rank(config: Config, world_size: int, rank: int, ledger: Ledger) -> Rehearsal:
    """Builds, steps and validates as `rank` of `world_size`. `ledger`: what `device.rehearse` was given.

    The recipe's backend must be named, and be the one that `device.rehearse` was asked for.
    """
    started = time.perf_counter()
    if config.finetune is not None:  # pairs of answers cost what as many tokens do
        config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"dpo": None})})
    layout = Layout.of(config.parallel, world_size)
    device.begin_rehearsal(config.kernels.deterministic)
    ledger.forget()
    with open_fake_context(config.parallel, rank, world_size) as context, ledger:
        ledger.vocabulary = config.model.padded_vocab_size // layout.tp_size if context.is_last_stage else None
        runner = build_runner(config, context=context, beat=lambda _: None, draws_weights=False)
        parameters = runner.model.num_parameters()
        _sort(runner, ledger)
        num_microbatches, few, fewest = _microbatches(config, layout)
        _step(config, runner, fewest, ledger)
        gc.collect()
        ledger.settle()
        _sort(runner, ledger)
        state = ledger.parts()
        ledger.restart()
        _step(config, runner, few, ledger)
        _validate(config, runner, layout)
        result = _result(ledger, context, repeats=num_microbatches / few)
        runner.model.release()
        del runner
        gc.collect()
    return Rehearsal(
        world_size=world_size,
        rank=rank,
        stage=context.place.pp_rank,
        layout=str(layout),
        backend=config.model.backend,
        parameters=parameters,
        num_microbatches=num_microbatches,
        rehearsed_microbatches=few,
        state={part: state[part] for part in (WEIGHTS, GRADIENTS, OPTIMIZER, OTHER)},
        seconds=round(time.perf_counter() - started, 2),
        **result,
    )


def _microbatches(config: Config, layout: Layout) -> tuple[int, int, int]:
    """(micro batches of a step, of the rehearsed one, of the one before it).

    From twice the stages on, a rank has as many in flight at once as it ever has; interleaving wants whole rounds.
    """
    t = config.train
    size = global_batch_size_at(t.global_batch_size, None, 0)
    number = size // (t.micro_batch_size * layout.dp_size)
    return number, min(number, 2 * layout.pp_size), layout.pp_size if layout.vpp_size > 1 else 1


def _step(config: Config, runner: StepRunner, num_microbatches: int, ledger: Ledger) -> None:
    batches = make_step_batches(config, num_microbatches if runner.needs_data else 0)
    with ledger.phase("step"):
        result = runner.compute(batches, num_microbatches=num_microbatches, step=0)
        updated = runner.apply(result, lr=config.schedule.lr)
    assert updated, f"a step whose gradients have the norm {result.grad_norm} is applied"


def make_step_batches(config: Config, num_microbatches: int) -> list[Batch]:
    """So many micro batches of the recipe's size, as the loader makes them, of tokens 0."""
    return [_batch(config, config.train.micro_batch_size) for _ in range(num_microbatches)]


def _validate(config: Config, runner: StepRunner, layout: Layout) -> None:
    """One pass of each stage, as `trainer.validation` does it, where the recipe has a validation set."""
    if not config.validation.sets:
        return
    size = config.validation.micro_batch_size or config.train.micro_batch_size
    number = layout.pp_size if layout.vpp_size > 1 else min(2, layout.pp_size)
    runner.evaluate((_batch(config, size) for _ in range(number)), num_microbatches=number, micro_batch_size=size)


def _batch(config: Config, size: int) -> Batch:
    """A micro batch as the loader makes it, on the CPU."""
    length = config.model.seq_length
    starts = np.zeros((size, length + 1), dtype=bool)
    starts[:, ::_DOCUMENT] = True
    rows = [np.zeros(length + 1, dtype=np.int64)] * size
    return make_batch(rows, None, starts if DocumentBounds.of(config.data).mask_attention else None)


def _sort(runner: StepRunner, ledger: Ledger) -> None:
    """Tells the ledger what is the optimizer's, the gradients' and the weights'; what two share is the last's."""
    ledger.assign(list(_optimizer_tensors(runner.optimizer)), OPTIMIZER)
    buffers = [buffer for chunk in runner.model.chunks for buffer in chunk.buffers]
    ledger.assign([buffer.grad_data for buffer in buffers], GRADIENTS)
    ledger.assign([buffer.param_data for buffer in buffers if buffer.param_data is not None], WEIGHTS)
    ledger.assign([part for chunk in runner.model.chunks for p in chunk.parameters() for part in _parts(p)], WEIGHTS)


def _parts(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """What a weight lies in: itself, or an 8-bit weight's numbers of each direction and their scales."""
    parts = [getattr(parameter, name, None) for name in _NARROW_PARTS] if hasattr(parameter, "_fp8_dtype") else []
    return [part for part in parts if part is not None] or [parameter.data]


def _optimizer_tensors(optimizer) -> Iterator[torch.Tensor]:
    for one in parts_of(optimizer):
        inner = getattr(one, "optimizer", None)
        if inner is None:  # a rank without parameters of this kind
            continue
        for group in inner.param_groups:
            yield from (p.data for p in group["params"])
        for state in inner.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _result(ledger: Ledger, context: ParallelContext, repeats: float) -> dict:
    """The ledger's counts; those that grow with micro batches times `repeats`."""
    by_part: Counter[str] = Counter()
    by_operator: Counter[str] = Counter()
    for (part, operator), size in ledger.at_peak.items():
        by_part[part] += size
        if part not in (WEIGHTS, GRADIENTS, OPTIMIZER):
            by_operator[operator] += size
    operations: Counter[tuple] = Counter()
    for (phase, done), calls in ledger.operations.items():
        if phase != "validation":
            operations[done] += round(calls * (repeats if phase == _COMPUTING else 1))
    return {
        "peak_bytes": ledger.peak,
        "peak_phase": ledger.peak_phase,
        "peak_by_part": dict(by_part),
        "peak_by_operator": dict(by_operator.most_common()),
        "peaks": {phase: size for phase, size in ledger.peaks.items() if phase},
        "operations": tuple(
            Operation(name, shape, dtype, calls, calls * flops)
            for (name, shape, dtype, flops), calls in sorted(operations.items(), key=lambda item: -item[1] * item[0][3])
        ),
        "traffic": _traffic(ledger, context, repeats),
        "waits": tuple(Wait(line, why, calls) for (line, why), calls in sorted(ledger.waited.items())),
    }


def _ranks_of(group) -> tuple[int, ...]:
    return () if group is None else tuple(dist.get_process_group_ranks(group))


def _traffic(ledger: Ledger, context: ParallelContext, repeats: float) -> tuple[Traffic, ...]:
    names, layout = context.group_names, context.layout
    by_ranks = {tuple(dist.get_process_group_ranks(group)): name for group, name in names.items()}
    calls: Counter[tuple] = Counter()
    moved: Counter[tuple] = Counter()
    for (phase, collective, group), number in ledger.traffic.items():
        if phase == "validation":
            continue
        size = layout.world_size if group is None else group.size()
        name = names.get(group) or by_ranks.get(_ranks_of(group)) or ("all" if size == layout.world_size else "other")
        if (
            collective in ("send", "receive") and name != "CP"
        ):  # some of those of two stages go through the group of all ranks
            name, size = "PP", layout.pp_size
        times = repeats if phase == _COMPUTING and name not in _ONCE_A_STEP else 1
        key = (collective, name, size)
        calls[key] += round(number * times)
        moved[key] += round(ledger.traffic_bytes[phase, collective, group] * times)
    return tuple(
        Traffic(collective, name, size, calls[collective, name, size], total)
        for (collective, name, size), total in moved.most_common()
    )
