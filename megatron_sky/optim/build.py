"""megatron-core's optimizer from the recipe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_sky.config.schema import OptimizerConfig, ParallelConfig, PrecisionConfig, ScheduleConfig
from megatron_sky.model import mcore_config
from megatron_sky.optim import adam, multi_tensor

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer


def build_optimizer(
    optimizer: OptimizerConfig,
    *,
    schedule: ScheduleConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    chunks: "Sequence[DistributedDataParallel]",
    gloo_groups: bool = True,
) -> "MegatronOptimizer":
    """AdamW over the DDP-wrapped `chunks`: fp32 masters and moments, sharded over data-parallel ranks if asked.

    `gloo_groups`: the context has groups of its ranks over gloo beside the device's own.
    """
    from megatron.core.optimizer import get_megatron_optimizer

    adam.install()
    multi_tensor.install()
    config = mcore_config.optimizer_config(
        optimizer, lr=schedule.lr, min_lr=schedule.min_lr, parallel=parallel, precision=precision
    )
    return get_megatron_optimizer(config, chunks, use_gloo_process_groups=gloo_groups)
