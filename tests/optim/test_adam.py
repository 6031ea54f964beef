"""AdamW with FusedAdam's surface: torch's own numbers, step for step."""

import copy
import subprocess
import sys

import pytest
import torch

from megatron_sky.optim.adam import FusedAdam

NUMBERS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,))]


def test_updates_are_torchs():
    ours, theirs = parameters(), parameters()
    optimizer, reference = FusedAdam(ours, **NUMBERS), torch.optim.AdamW(theirs, **NUMBERS)
    for step in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.full_like(p, 0.1 * (step + 1)) * p.detach()
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
    assert optimizer.param_groups[0]["step"] == 5


def test_a_parameter_without_a_gradient_stays_and_the_group_still_counts():
    first, second = parameters()
    optimizer = FusedAdam([{"params": [first]}, {"params": [second], "weight_decay": 0.0}], **NUMBERS)
    first.grad, before = torch.ones_like(first), second.detach().clone()
    optimizer.step()
    assert torch.equal(second, before) and not optimizer.state[second]
    assert [group["step"] for group in optimizer.param_groups] == [1, 1], "all ranks must agree on it"
    assert optimizer.state[first].keys() == {"exp_avg", "exp_avg_sq"}


def test_a_state_that_was_saved_goes_on():
    ours, again = parameters(), parameters()
    optimizer, other = FusedAdam(ours, **NUMBERS), FusedAdam(again, **NUMBERS)
    for p, q in zip(ours, again, strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    optimizer.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a file would hold it
    for p, q in zip(ours, again, strict=True):
        q.data.copy_(p.data)
    optimizer.step()
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, again, strict=True))


@pytest.mark.parametrize("asked", [{"adam_w_mode": False}, {"capturable": True}])
def test_what_no_recipe_asks_for(asked):
    with pytest.raises(AssertionError):
        FusedAdam(parameters(), **asked)


def test_making_and_storing_one_does_not_bring_torchs_compiler():
    program = """
import sys
import torch
from megatron_sky.optim.adam import FusedAdam
before = "torch._dynamo" in sys.modules
optimizer = FusedAdam([torch.nn.Parameter(torch.ones(2))])
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(("torch._dynamo" in sys.modules) == before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
