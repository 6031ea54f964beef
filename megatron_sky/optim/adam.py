"""AdamW for machines without Transformer Engine or apex, with their FusedAdam's surface on torch's arithmetic.

megatron-core's distributed optimizer expects the surface: the step count in the parameter group, `exp_avg` and
`exp_avg_sq` per parameter, made by megatron-core's own state initialiser. Its fallback to torch.optim.AdamW can't be
used: a fresh sharded optimizer fails to load a checkpoint, and one shared step tensor is advanced per parameter.
"""

import inspect
from collections.abc import Callable
from typing import NoReturn, overload

import torch
from torch.optim.adamw import adamw

from megatron_sky.distributed import compat


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019): decoupled weight decay, bias correction. fp32 parameters, dense gradients."""

    # torch wraps these for torch.compile, which it imports at the first call: half a second of each start.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ):
        assert adam_w_mode and not capturable, "a recipe can only ask for decoupled weight decay outside a CUDA graph"
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> NoReturn: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of every parameter that has a gradient."""
        assert closure is None, "megatron-core computes gradients before the step"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            # Kept in the group even when it is empty here: all ranks must agree on it.
            steps_done = group.get("step", 0)
            group["step"] = steps_done + 1
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            beta1, beta2 = group["betas"]
            adamw(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                [torch.full((), float(steps_done), device=p.device) for p in params],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def install() -> None:
    """Gives megatron-core this Adam where it found neither Transformer Engine's nor apex's."""
    import megatron.core.optimizer as optimizers
    from megatron.core.optimizer import distrib_optimizer

    if optimizers.USING_PYTORCH_OPTIMIZER:
        compat.replace_members(optimizers, Adam=FusedAdam, USING_PYTORCH_OPTIMIZER=False)
        compat.replace_members(distrib_optimizer, Adam=FusedAdam, HAVE_APEX_OR_TE=True, USING_APEX_OPTIMIZER=True)
