"""What this machine has, in words that a message can hold."""

import dataclasses

import pytest

from megatron_sky.distributed.machine import Machine, this_machine

NODE = Machine("NVIDIA H100", (9, 0), "2.13.0", "13.0", "2.9", 13, apex=False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "torch 2.13.0 with CUDA 13.0, Transformer Engine 2.9 for CUDA 13"),
        ({"te": None, "te_cuda": None}, "torch 2.13.0 with CUDA 13.0, Transformer Engine absent"),
        ({"cuda_version": None, "te_cuda": None}, "torch 2.13.0 with CUDA absent, Transformer Engine 2.9"),
    ],
)
def test_versions_that_must_fit_together(changed, words):
    assert dataclasses.replace(NODE, **changed).words() == words


def test_this_one():
    import torch

    machine = this_machine()
    assert machine.torch == torch.__version__ and (machine.gpu is None) == (machine.capability is None)
    assert machine.torch in machine.words()
