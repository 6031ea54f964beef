"""The optimizer's step in two halves, so that a bad step can be judged before it is applied.

megatron-core's `optimizer.step()` does both at once: it makes the gradients ready, measures their norm, clips, and
updates. Here `measure` is the first half and `apply` the second.
"""

import math
from typing import TYPE_CHECKING

import torch

from megatron_sky.config.schema import OptimizerConfig
from megatron_sky.distributed import compat

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer


def parts_of(optimizer: "MegatronOptimizer") -> "list[MegatronOptimizer]":
    """The optimizers of which megatron-core's is made, or it alone."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def measure(optimizer: "MegatronOptimizer", sums: torch.Tensor) -> tuple[float | None, list[float]]:
    """Makes the gradients ready and returns their global norm, and the float64 `sums`, read with it: a GPU is waited
    for once.

    The norm is None where gradients overflowed fp16 and the loss scale has been lowered for the next step; infinite
    where they overflowed at the smallest loss scale, so that no step to come would do better.
    """
    smallest = _is_loss_scale_smallest(optimizer)
    if optimizer.prepare_grads():
        return math.inf if smallest else None, sums.tolist()
    squared, *numbers = torch.cat([_squared_norm(optimizer, sums.device), sums]).tolist()
    return squared**0.5, numbers


@torch.no_grad()
def _squared_norm(optimizer: "MegatronOptimizer", device: torch.device) -> torch.Tensor:
    """float64 `[1]`: of all ranks' gradients, by the kernels of megatron-core, whose own function reads the number."""
    import torch.distributed as dist
    from megatron.core.optimizer import clip_grads

    total = torch.zeros(1, dtype=torch.float64, device=device)
    for one in parts_of(optimizer):
        squared = torch.zeros(1, dtype=torch.float32, device=device)
        if gradients := compat.gradients_of_norm(one):
            unused = torch.zeros(1, dtype=torch.int, device=device)
            norm, _ = clip_grads.multi_tensor_applier(clip_grads.l2_norm_impl, unused, [gradients], False)
            squared = norm**2.0
        dist.all_reduce(squared, group=one.get_grad_stats_parallel_group())
        total += squared
    return total


def apply(optimizer: "MegatronOptimizer", grad_norm: float) -> bool:
    """Clips by `grad_norm` and updates the weights; whether they were updated."""
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    for one in parts_of(optimizer):
        parameters = [] if getattr(one, "is_stub_optimizer", False) else one.get_parameters()
        if parameters and one.config.clip_grad > 0.0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=one.config.clip_grad, total_norm=grad_norm)
    return bool(optimizer.step_with_ready_grads())


def _is_loss_scale_smallest(optimizer: "MegatronOptimizer") -> bool:
    scalers = [getattr(one, "grad_scaler", None) for one in parts_of(optimizer)]
    return any(scaler is not None and float(scaler.scale) <= float(scaler.min_scale) for scaler in scalers)


def set_numbers(optimizer: "MegatronOptimizer", recipe: OptimizerConfig, lr: float) -> None:
    """Sets the step's learning rate and the recipe's numbers, whatever a loaded checkpoint had.

    Biases and norms carry a decay multiplier of 0.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = recipe.weight_decay * group.get("wd_mult", 1.0)
        group["betas"], group["eps"] = (recipe.adam_beta1, recipe.adam_beta2), recipe.adam_eps


def forget_moments(optimizer: "MegatronOptimizer") -> None:
    """Back to a new optimizer's state: moments of zero, bias correction from the first step. Weights stay."""
    for one in parts_of(optimizer):
        inner = getattr(one, "optimizer", None)
        if inner is None:  # a rank without parameters of this kind
            continue
        for state in inner.state.values():
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if hasattr(state.get(name), "zero_"):
                    state[name].zero_()
        for group in inner.param_groups:
            if "step" in group:
                group["step"] = group["step"] * 0
