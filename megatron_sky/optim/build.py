"""megatron-core's optimizer from the recipe, and its learning rate from the schedule."""

from megatron_sky.config.schema import OptimizerConfig, ParallelConfig, PrecisionConfig, ScheduleConfig
from megatron_sky.model import mcore_config
from megatron_sky.optim import adam, multi_tensor


def build_optimizer(
    optimizer: OptimizerConfig,
    *,
    schedule: ScheduleConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    chunks: list,
):
    """AdamW over the DDP-wrapped `chunks`: fp32 masters and moments, sharded over data-parallel ranks if asked."""
    from megatron.core.optimizer import get_megatron_optimizer

    adam.install()
    multi_tensor.install()
    config = mcore_config.optimizer_config(
        optimizer, lr=schedule.lr, min_lr=schedule.min_lr, parallel=parallel, precision=precision
    )
    return get_megatron_optimizer(config, chunks)


def set_lr(optimizer, lr: float, weight_decay: float) -> None:
    """Sets the step's learning rate and decay; biases and norms carry a decay multiplier of 0."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
