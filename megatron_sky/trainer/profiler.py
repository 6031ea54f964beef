"""A torch profiler trace of chosen steps on chosen ranks, and the table of it by kernel class.

Written to `<run_dir>/profile/`: `rank_00000_steps_10-12.json.gz` (for Perfetto or chrome://tracing) and `.txt`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.config.schema import ProfileConfig
from megatron_sky.distributed import device
from megatron_sky.files import replacing_by_name, write_text
from megatron_sky.monitor.kernels import KernelTime, table

if TYPE_CHECKING:
    from torch.profiler import profile


class Profiler:
    """Told of every step; does nothing on ranks and steps that the recipe does not name."""

    def __init__(self, settings: ProfileConfig, *, rank: int, run_dir: Path, tell: Callable[[str], None]):
        self._rank, self._folder, self._tell = rank, run_dir / "profile", tell
        first = settings.first_step if rank in settings.ranks else None
        self._steps = range(0) if first is None else range(first, first + settings.num_steps)
        self._profile: profile | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exc_info) -> None:
        if self._profile is not None:  # the run ends within the traced steps
            self._profile.stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`."""
        if self._profile is None and number in self._steps:
            self._profile = device.kernel_profile()
            self._profile.start()
            self._steps = range(number, self._steps.stop)  # a resumed run may begin in the middle of them
        with device.named_range(f"step {number}"):
            yield
        if self._profile is not None and number + 1 >= self._steps.stop:
            traced, self._profile = self._profile, None
            self._write(traced)

    def _write(self, traced: "profile") -> None:
        device.synchronize()
        traced.stop()
        name = f"rank_{self._rank:05d}_steps_{self._steps.start}-{self._steps.stop - 1}"
        trace = self._folder / f"{name}.json.gz"
        text = table(kernel_times(traced), steps=len(self._steps))
        self._steps = range(0)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / f"{name}.txt", text)
            with replacing_by_name(trace, ".json.gz") as beside:  # the ending says that it is to be compressed
                traced.export_chrome_trace(beside)
        except OSError as error:
            self._tell(f"{trace}: can't be written, the run goes on without: {error.strerror or error}\n{text}")
            return
        self._tell(f"profile of rank {self._rank} in {trace}; time by kernel class:\n{text}")


def kernel_times(profile: "profile") -> list[KernelTime]:
    """Own time of every kernel on a GPU, of every operator on a CPU."""
    return [KernelTime(*kernel) for kernel in device.kernel_times(profile)]
