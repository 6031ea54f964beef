"""What the training loop costs beside the training: own overhead of megatron_sky over a bare megatron-core loop.

One process, one model, one optimizer. Blocks of steps of two loops over them take turns:

- ours: the loop as `megatron-sky train` runs it, with batches read ahead from token files, schedule, checks, log line
  at every step, metrics.jsonl and TensorBoard;
- bare: zero gradients, megatron-core's forward-backward schedule, optimizer step, and nothing else, on batches of the
  same size that lie ready in memory.

    python benchmarks/loop_overhead.py [--rounds 10]
"""

import argparse
import os
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
            seq_length=SHAPE["seq_length"],
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


def measure(config, rounds: int, steps_per_block: int) -> tuple[Side, Side]:
    """Runs `config` as `megatron-sky train` does, with blocks of bare steps between the trainer's: (ours, bare)."""
    from megatron_sky.distributed.launch import RankInfo
    from megatron_sky.trainer import run
    from megatron_sky.trainer.loop import Trainer

    tokens = steps_per_block * config.train.global_batch_size * SHAPE["seq_length"]
    ours, bare = Side("megatron_sky loop", tokens), Side("bare loop", tokens)

    class Alternating(Trainer):
        def fit(self) -> None:
            size = config.train.global_batch_size // config.train.micro_batch_size
            loop = BareLoop(self.runner.model, self.optimizer, [next(self.batches) for _ in range(size)])
            for number in range(rounds + 1):
                sides = [(ours, self.block), (bare, lambda: [loop.step() for _ in range(steps_per_block)])]
                for side, block in sides if number % 2 else reversed(sides):  # neither is always the first
                    start, cpu_start = time.perf_counter(), time.process_time()
                    block()
                    if number:  # round 0 is the warm-up
                        side.seconds.append(time.perf_counter() - start)
                        side.cpu_seconds.append(time.process_time() - cpu_start)

        def block(self) -> None:
            for _ in range(steps_per_block):
                assert self.should_continue()
                self.step()
                self.maybe_validate()
                self.maybe_save()

    run.Trainer = Alternating
    run.train(config, RankInfo())
    return ours, bare


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
            steps=(given.rounds + 1) * given.steps_per_block + 1,  # one more is read for the bare loop
            dtype=given.dtype,
            micro_batch_size=given.micro_batch_size,
            global_batch_size=given.global_batch_size,
            threads=given.threads or len(os.sched_getaffinity(0)),
        )
        ours, bare = measure(config, given.rounds, given.steps_per_block)
    print(
        f"{given.dtype}, {config.train.num_threads} thread(s), batch {given.global_batch_size} x {SHAPE['seq_length']} "
        f"in micro batches of {given.micro_batch_size}, {given.steps_per_block} step(s) a block"
    )
    print(told(ours, bare))


if __name__ == "__main__":
    main()
