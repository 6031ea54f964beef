"""Runs that are hurt on purpose: real training in a forked process of a warm worker, which may be killed at any point.

The worker (of `tests.ranks`) has everything imported, so a run costs a second. The child leads a session of its own,
so that killing its group kills its checkpoint writers too, as a node's failure would.
"""

import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.config import load_config
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import SkyError


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: killed by that signal) and what it said at last."""

    code: int
    message: str


def run_hurt(info: RankInfo, config_text: str, fault: Callable | None = None, watch: Callable | None = None) -> Ended:
    """Trains in a child that `fault(config)` has patched; `watch(pid, config)` may hurt it from outside."""
    _warm_up()
    with tempfile.TemporaryDirectory() as folder:
        recipe, said = Path(folder) / "recipe.yaml", Path(folder) / "said.txt"
        recipe.write_text(config_text)
        config = load_config([recipe])
        child = os.fork()
        if child == 0:
            _train_and_leave(config, said, fault)
        if watch is not None:
            watch(child, config)
        _, status = os.waitpid(child, 0)
        return Ended(os.waitstatus_to_exitcode(status), said.read_text() if said.exists() else "")


def _warm_up() -> None:
    """Imports what a run needs before the fork, so that no child pays for it."""
    from megatron_sky.distributed import device

    device.setup(num_threads=1)
    import megatron.core.models.gpt
    import megatron.core.optimizer  # noqa: F401
    import torch._dynamo  # noqa: F401 (torch's optimizers import it when the first is made)

    import megatron_sky.trainer.run  # noqa: F401


def _train_and_leave(config, said: Path, fault: Callable | None) -> None:
    os.setsid()
    code = 1
    try:
        from megatron_sky.trainer.run import train

        if fault is not None:
            fault(config)
        train(config, RankInfo())
        code = 0
    except SkyError as error:
        said.write_text(str(error))
        code = error.exit_code
    except BaseException:
        said.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def kill_group(child: int) -> None:
    os.killpg(child, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether `condition` came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False
