"""`train --dry-run`: the whole job checked and told without starting it.

Every pipeline stage is built with the real megatron-core, on process groups whose members do not exist and with
weights that take no memory, so a 512-rank job is checked in seconds on a laptop. The data files are checked as well.
"""

from dataclasses import replace

from megatron_sky.config import Config
from megatron_sky.config.units import format_count
from megatron_sky.config.validate import check
from megatron_sky.data.loader import TrainData
from megatron_sky.distributed import device
from megatron_sky.distributed.context import open_fake_context
from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.model.build import build_model
from megatron_sky.model.flops import flops_per_token, num_parameters
from megatron_sky.optim.schedule import global_batch_size_at, lr_at
from megatron_sky.trainer.run import length_of, open_data

GIB = 1 << 30


def print_plan(config: Config, world_size: int) -> None:
    """Prints what the recipe would do on `world_size` ranks; raises the SkyError of what would stop it."""
    notes = check(config, world_size)
    layout = Layout.of(config.parallel, world_size)
    print(f"layout      {layout} on {world_size} rank(s)")
    _print_model(config, layout)
    _print_run(config, layout)
    for note in notes:
        print(f"note        {note}")
    data = open_data(config)
    _print_data(config, data)
    print("every check passed")


def stage_parameters(config: Config, layout: Layout) -> list[int]:
    """Parameters that one rank of each pipeline stage holds, from the built model."""
    counts = []
    for stage in range(layout.pp_size):
        rank = layout.rank(Coordinates(tp_rank=0, cp_rank=0, dp_rank=0, pp_rank=stage))
        with open_fake_context(config.parallel, rank, layout.world_size) as context, device.on_meta():
            model = build_model(
                config.model,
                parallel=config.parallel,
                precision=config.precision,
                train=config.train,
                context=replace(context, device=device.cpu()),
                ddp=False,
                init=False,
            )
            counts.append(model.num_parameters())
    return counts


def state_bytes(config: Config, parameters: int, dp_cp_size: int) -> float:
    """Bytes of weights, gradients and optimizer state of a rank that holds `parameters`; activations not counted.

    16-bit training: 2 for the weight, 4 for its fp32 gradient (2 without grad_reduce_in_fp32), 12 for master weight and
    two moments; fp32: 4, 4 and 8. The distributed optimizer divides the last by the data-parallel ranks.
    """
    p = config.precision
    if p.dtype == "fp32":
        fixed, sharded = 4 + 4, 8
    else:
        fixed, sharded = 2 + (4 if p.grad_reduce_in_fp32 else 2), 12
    return parameters * (fixed + sharded / (dp_cp_size if config.parallel.distributed_optimizer else 1))


def _print_model(config: Config, layout: Layout) -> None:
    print(f"model       {num_parameters(config.model):,} parameters, {flops_per_token(config.model):.3g} FLOPs a token")
    for stage, count in enumerate(stage_parameters(config, layout)):
        held = state_bytes(config, count, layout.dp_size * layout.cp_size) / GIB
        print(
            f"  stage {stage:<4}{count:,} parameters a rank, {held:.2f} GiB of weights, gradients and optimizer state"
        )


def _print_run(config: Config, layout: Layout) -> None:
    t, s = config.train, config.schedule
    steps, samples = length_of(config)
    tokens = samples * config.model.seq_length
    first = global_batch_size_at(t.global_batch_size, t.batch_rampup, 0)
    size = f"{first} -> {t.global_batch_size}" if first != t.global_batch_size else f"{t.global_batch_size}"
    step_tokens = t.global_batch_size * config.model.seq_length
    print(f"run         {steps:,} steps to {format_count(tokens)} tokens, in {t.run_dir}")
    print(
        f"batch       {size} sequences of {config.model.seq_length:,} = {format_count(step_tokens)} tokens a step, "
        f"{t.global_batch_size // (t.micro_batch_size * layout.dp_size)} micro batches a rank"
    )
    marks = ", ".join(
        f"{lr_at(s, round(tokens * part), t.tokens):.3g} at {format_count(round(tokens * part))}"
        for part in (0.0, 0.01, 0.25, 0.5, 0.75, 1.0)
    )
    print(f"lr          {s.style}, warm-up {format_count(s.warmup_tokens)} tokens: {marks}")


def _print_data(config: Config, data: TrainData) -> None:
    _, samples = length_of(config)
    counts, epochs = data.plan.consumed(samples), data.plan.epochs(samples)
    print(f"data        {'source':<24}{'tokens':>12}{'used':>12}{'share':>9}{'epochs':>9}")
    for source, file, count, epoch in zip(config.data.train, data.files, counts, epochs, strict=True):
        used = count * config.model.seq_length
        print(
            f"            {source.name:<24}{format_count(file.num_tokens):>12}{format_count(used):>12}"
            f"{count / samples:>9.2%}{epoch:>9.2f}"
        )
