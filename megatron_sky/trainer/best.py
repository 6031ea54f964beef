"""The best checkpoint of a run by its validation: noted when a validation ends, saved and kept by the manager."""

import math
from collections.abc import Mapping
from pathlib import Path

from megatron_sky.checkpoint import store
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.files import write_json
from megatron_sky.log import get_logger
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.validation import SetLoss

log = get_logger(__name__)
FILE = "best.json"


class Best:
    """Notes validations that are better than all before, in the state and in the run folder's `best.json`."""

    def __init__(self, run_dir: Path, context: ParallelContext):
        self._run_dir, self._context = run_dir, context

    def note(self, state: TrainState, losses: Mapping[str, SetLoss]) -> None:
        """The mean of the sets' losses decides; not before the first step, whose weights are the base's."""
        if not losses or state.step == 0:
            return
        loss = sum(result.lm_loss for result in losses.values()) / len(losses)
        if math.isnan(loss) or (state.best_loss is not None and loss >= state.best_loss):
            return
        state.best_loss, state.best_tokens = loss, state.consumed_tokens
        if self._context.rank == 0:
            folder = store.folder_of(self._run_dir, state.step)
            write_json(self._run_dir / FILE, {"step": state.step, "loss": loss, "checkpoint": folder.name})
            log.info("best validation loss so far: %.4f, kept as %s", loss, folder.name)
