"""What this machine has, as plain facts: GPUs, drivers, and the versions of what a GPU run is built of."""

from dataclasses import dataclass

from megatron_sky.distributed import device
from megatron_sky.versions import installed


@dataclass(frozen=True)
class Machine:
    """The software and the GPU of this process. None: not present."""

    gpu: str | None  # name, as torch tells it
    capability: tuple[int, int] | None  # compute capability: (8, 0) Ampere, (9, 0) Hopper, (10, 0) Blackwell
    torch: str
    cuda_version: str | None  # that torch was built with
    te: str | None
    te_cuda: int | None  # major version that Transformer Engine's core package was built for
    apex: bool

    def words(self) -> str:
        """The versions that must fit together, for messages."""
        te = f"Transformer Engine {self.te or 'absent'}" + (f" for CUDA {self.te_cuda}" if self.te_cuda else "")
        return f"torch {self.torch} with CUDA {self.cuda_version or 'absent'}, {te}"


def this_machine() -> Machine:
    """Looks at the installed packages and the current GPU; imports torch and nothing else that is heavy."""
    import torch

    present = device.has_gpu()
    cores = [major for major in (12, 13) if installed(f"transformer-engine-cu{major}")]
    return Machine(
        gpu=device.name() if present else None,
        capability=device.capability() if present else None,
        torch=str(torch.__version__),
        cuda_version=device.cuda_version(),
        te=installed("transformer-engine") or installed("transformer-engine-torch"),
        te_cuda=cores[0] if len(cores) == 1 else None,
        apex=device.has_apex_gradients(),
    )
