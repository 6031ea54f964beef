"""Sides of a comparison that stay alive and take turns, a block of steps each, so that both meet the same noise.

While it is another's turn, a side's processes are stopped by SIGSTOP: gloo's threads of each process group wake up a
hundred times a second, and those of nine waiting processes cost the one that trains 13 % of two cores.
"""

import multiprocessing
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from common import Side


class Blocks(Protocol):
    """What of a benchmark's setting says how long a turn is."""

    @property
    def warmup_steps(self) -> int: ...
    @property
    def steps_per_block(self) -> int: ...
    @property
    def rounds(self) -> int: ...


class Team:
    """A side's processes, each running `work(pipe, *arguments)` with a `Turns` on its pipe."""

    def __init__(self, work: Callable, arguments: Sequence[tuple]):
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for each in arguments:
            pipe, far_end = spawn.Pipe()
            process = spawn.Process(target=work, args=(far_end, *each))
            process.start()
            far_end.close()
            self._pipes.append(pipe)
            self._processes.append(process)

    def take_turn(self) -> list[tuple[float, list[float]]]:
        """Lets all of them run a block of steps: each one's CPU seconds and losses.

        EOFError or ConnectionError where one has ended.
        """
        self._signal(signal.SIGCONT)
        for pipe in self._pipes:
            pipe.send("go")
        answers = [pipe.recv() for pipe in self._pipes]
        self._signal(signal.SIGSTOP)
        return answers

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            os.kill(process.pid, number)


def compare_teams(teams: Sequence[Team], sides: Sequence[Side], rounds: int) -> list[list[float]]:
    """Each team's blocks in turns, timed into its side but for the first, the warm-up; then the teams are ended.

    Returns each team's losses, the mean over its processes at every step.
    """
    losses: list[list[float]] = [[] for _ in teams]
    try:
        for number in range(rounds + 1):
            order = range(len(teams)) if number % 2 else reversed(range(len(teams)))  # neither is always the first
            for place in order:
                start = time.perf_counter()
                answers = teams[place].take_turn()
                if number:
                    sides[place].seconds.append(time.perf_counter() - start)
                    sides[place].cpu_seconds.append(sum(cpu for cpu, _ in answers))
                losses[place] += map(statistics.mean, zip(*(each for _, each in answers), strict=True))
    finally:
        for team in teams:
            team.end()
    return losses


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
