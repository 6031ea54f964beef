"""A torch profiler trace of chosen steps on chosen ranks, and the table of it by kernel class.

Written to `<run_dir>/profile/`: `rank_00000_steps_10-12.json.gz` (for Perfetto or chrome://tracing) and `.txt`.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from megatron_sky.config.schema import ProfileConfig
from megatron_sky.distributed import device
from megatron_sky.monitor.kernels import KernelTime, table


class Profiler:
    """Told of every step; does nothing on ranks and steps that the recipe does not name."""

    def __init__(self, settings: ProfileConfig, *, rank: int, run_dir: Path, tell: Callable[[str], None]):
        self._rank, self._folder, self._tell = rank, run_dir / "profile", tell
        wanted = settings.first_step is not None and rank in settings.ranks
        first = settings.first_step if wanted else 0
        self._steps = range(first, first + settings.num_steps) if wanted else range(0)
        self._profile = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exc_info) -> None:
        if self._profile is not None:  # the run ends within the traced steps
            self._profile.stop()

    @contextlib.contextmanager
    def step(self, number: int):
        """Around step `number`."""
        if self._profile is None and number in self._steps:
            self._profile = device.kernel_profile()
            self._profile.start()
            self._steps = range(number, self._steps.stop)  # a resumed run may begin in the middle of them
        with device.named_range(f"step {number}"):
            yield
        if self._profile is not None and number + 1 >= self._steps.stop:
            self._write()

    def _write(self) -> None:
        profile, self._profile = self._profile, None
        device.synchronize()
        profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"rank_{self._rank:05d}_steps_{self._steps.start}-{self._steps.stop - 1}"
        trace = self._folder / f"{name}.json.gz"
        profile.export_chrome_trace(str(trace))
        text = table(kernel_times(profile), steps=len(self._steps))
        (self._folder / f"{name}.txt").write_text(text, encoding="utf-8")
        self._steps = range(0)
        self._tell(f"profile of rank {self._rank} in {trace}; time by kernel class:\n{text}")


def kernel_times(profile) -> list[KernelTime]:
    """Own time of every kernel on a GPU, of every operator on a CPU."""
    return [KernelTime(*kernel) for kernel in device.kernel_times(profile)]
