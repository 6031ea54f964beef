"""What the training loop costs beside the training: own overhead of megatron_sky over a bare megatron-core loop.

One process, one model, one optimizer. Blocks of steps of two loops over them take turns:

- ours: the loop as `megatron-sky train` runs it, with batches read ahead from token files, schedule, checks, log line
  at every step, metrics.jsonl and TensorBoard;
- bare: zero gradients, megatron-core's forward-backward schedule, optimizer step, and nothing else, on batches of the
  same size that lie ready in memory.

The overhead is a few thousandths of a step, which a busy machine hides. So it is also clocked by itself: the time that
our steps spend outside megatron-core's calls, held against the bare loop's step.

    python benchmarks/loop_overhead.py [--rounds 10]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from common import SHAPE, Side, recipe, told


class BareLoop:
    """megatron-core's step on `model` and `optimizer`, written as plainly as it can be."""

    def __init__(self, model, optimizer, batches: list):
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self._model = model
        self._optimizer = optimizer
        self._batches = batches
        self._schedule = get_forward_backward_func()

    def step(self) -> None:
        chunk = self._model.chunks[0]
        chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        self._schedule(
            forward_step_func=_forward,
            data_iterator=iter(self._batches),
            model=chunk,
            num_microbatches=len(self._batches),
            seq_length=self._batches[0].tokens.shape[1],
            micro_batch_size=self._batches[0].tokens.shape[0],
            forward_only=False,
        )
        self._optimizer.step()


def _forward(batches, chunk):
    batch = next(batches)
    losses = chunk(batch.tokens, batch.position_ids, None, labels=batch.labels)

    def loss(losses):
        return losses.sum(), batch.loss_mask.sum().int(), {}

    return losses, loss


class Clock:
    """Adds up the wall seconds spent inside the calls it wraps, nested ones once."""

    seconds = 0.0
    _inside = False

    def wrap(self, owner, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, call):
        def timed(*args, **kwargs):
            if self._inside:
                return call(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._inside = False

        return timed


def measure(config, rounds: int, steps_per_block: int) -> tuple[Side, Side, list[float]]:
    """Runs `config` as `megatron-sky train` does, with blocks of bare steps between the trainer's.

    Returns (ours, bare, seconds of each of our blocks outside megatron-core's calls).
    """
    from megatron_sky.distributed.launch import RankInfo
    from megatron_sky.trainer import run
    from megatron_sky.trainer.loop import Trainer

    tokens = steps_per_block * config.train.global_batch_size * SHAPE["seq_length"]
    ours, bare, outside = Side("megatron_sky loop", tokens), Side("bare loop", tokens), []

    class Alternating(Trainer):
        left = 0

        def should_continue(self) -> bool:  # what `fit` asks before every step
            if self.left == 0:
                self.end_block()
            self.left -= 1
            return len(ours.seconds) < rounds and super().should_continue()

        def end_block(self) -> None:
            """Our block is over: the bare loop's turn, then ours again."""
            if self.state.step == 0:
                size = config.train.global_batch_size // config.train.micro_batch_size
                self.bare = BareLoop(
                    self.runner.model, self.runner.optimizer, [next(self.batches) for _ in range(size)]
                )
                self.clock = _clock_megatron_core(self.runner, self.runner.optimizer)
            elif self.state.step > steps_per_block:  # the first block is the warm-up
                ours.seconds.append(time.perf_counter() - self.start)
                ours.cpu_seconds.append(time.process_time() - self.cpu_start)
                outside.append(ours.seconds[-1] - self.clock.seconds)
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(steps_per_block):
                self.bare.step()
            if self.state.step:
                bare.seconds.append(time.perf_counter() - start)
                bare.cpu_seconds.append(time.process_time() - cpu_start)
            self.left, self.clock.seconds = steps_per_block, 0.0
            self.start, self.cpu_start = time.perf_counter(), time.process_time()

        def finish(self) -> None:
            """No checkpoint: it is not what is measured."""

    run.Trainer = Alternating
    run.train(config, RankInfo())
    return ours, bare, outside


def _clock_megatron_core(runner, optimizer) -> Clock:
    """A clock that runs inside megatron-core's part of a step."""
    from megatron.core.optimizer import clip_grads

    clock = Clock()
    clock.wrap(runner, "_run_schedule")
    clock.wrap(runner.model.chunks[0], "zero_grad_buffer")
    clock.wrap(optimizer, "zero_grad", "prepare_grads", "get_grad_norm", "step_with_ready_grads", "step")
    clock.wrap(clip_grads, "clip_grad_by_total_norm_fp32")
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--global-batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each loop that are timed")
    parser.add_argument("--steps-per-block", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megatron_sky_bench_") as folder:
        config = recipe(
            Path(folder),
            steps=(given.rounds + 3) * given.steps_per_block,
            dtype=given.dtype,
            micro_batch_size=given.micro_batch_size,
            global_batch_size=given.global_batch_size,
            threads=given.threads or len(os.sched_getaffinity(0)),
        )
        ours, bare, outside = measure(config, given.rounds, given.steps_per_block)
    print(
        f"{given.dtype}, {config.train.num_threads} thread(s), batch {given.global_batch_size} x {SHAPE['seq_length']} "
        f"in micro batches of {given.micro_batch_size}, {given.steps_per_block} step(s) a block"
    )
    print(told(ours, bare))
    own = statistics.median(outside)
    print(
        f"outside megatron-core's calls: {1e3 * own / given.steps_per_block:.1f} ms a step, "
        f"{own / statistics.median(bare.seconds):.2%} of the bare loop's step"
    )


if __name__ == "__main__":
    main()
