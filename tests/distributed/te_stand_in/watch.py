"""A watch that writes down what kernels tell it, and the stand-in without Transformer Engine."""

import contextlib
from types import ModuleType

from megatron_sky.distributed.meta_device import Watch
from megatron_sky.distributed.te_stand_in.install import extension


class Notes(Watch):
    def __init__(self) -> None:
        self.products: list[tuple] = []
        self.traffic: list[tuple] = []
        self.buffers: list = []
        self.kernels: list[str] = []

    def waits(self, operator, why):
        raise AssertionError(f"{operator} {why}")

    def phase(self, name):
        return contextlib.nullcontext()

    def fused(self, name):
        return contextlib.nullcontext()

    def kernel(self, name):
        self.kernels.append(name)
        return contextlib.nullcontext()

    def computed(self, operator, shape, dtype, passes):
        self.products.append((operator, shape, dtype, passes))

    def communicates_through(self, buffer):
        self.buffers.append(buffer)

    def communicated(self, collective, tensor, group, received):
        self.traffic.append((collective, tuple(tensor.shape), group))


def stand_in(watch: Watch, capability: tuple[int, int] = (9, 0), version: tuple[int, ...] = (2, 20, 2)) -> ModuleType:
    return extension(watch, capability, version)
