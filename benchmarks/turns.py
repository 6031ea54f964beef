"""Sides of a comparison that stay alive and take turns, a block of steps each, so that both meet the same noise."""

import socket
import time
from typing import Protocol


class Blocks(Protocol):
    """What of a benchmark's setting says how long a turn is."""

    @property
    def warmup_steps(self) -> int: ...
    @property
    def steps_per_block(self) -> int: ...
    @property
    def rounds(self) -> int: ...


class Turns:
    """A worker's end of the pipe: waits for "go", lets a block of steps run, answers with CPU seconds and losses."""

    def __init__(self, pipe, setting: Blocks):
        self._pipe = pipe
        self._blocks = [setting.warmup_steps] + [setting.steps_per_block] * setting.rounds
        self._left = 0
        self._losses: list[float] = []

    def before_step(self) -> None:
        """Returns at once inside a block; between blocks waits for the turn, after the last one for the end."""
        if self._left == 0:
            self._pipe.recv()
            self._left = self._blocks.pop(0)
            self._cpu_start = time.process_time()

    def after_step(self, loss=None) -> None:
        """Counts a step; at the block's end tells the parent."""
        if loss is not None:
            self._losses.append(loss)
        self._left -= 1
        if self._left == 0:
            self._pipe.send((time.process_time() - self._cpu_start, [float(loss) for loss in self._losses]))
            self._losses = []


def train_in_turns(config, turns: Turns) -> None:
    """`trainer.run.train` as this process's rank, step by step when it is its turn; losses are in metrics.jsonl."""
    from megatron_sky.distributed.launch import rank_info
    from megatron_sky.trainer import run
    from megatron_sky.trainer.loop import Trainer

    class InTurns(Trainer):
        stepping = False

        def should_continue(self) -> bool:  # what `fit` asks before every step
            if self.stepping:
                turns.after_step()
            self.stepping = True
            turns.before_step()
            return super().should_continue()

    run.Trainer = InTurns
    run.train(config, rank_info())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
