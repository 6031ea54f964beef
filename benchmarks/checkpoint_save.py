"""What a save costs training, beside it and waited for; saving and loading against the disk's rate.

One process trains a LLaMA-like model on this machine's disk. Each round times steps without a save, a save that is
waited for (checkpoint.async_save: false), and steps beside a save: what these take longer than as many without one,
until the save has ended, is what it costs. The disk's rate is measured in the same round by writing and reading as many
bytes plainly.

    python benchmarks/checkpoint_save.py [--folder DIR] [--layers 24] [--rounds 3]
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from loop_overhead import BareLoop

from megatron_sky.checkpoint import state, store
from megatron_sky.checkpoint.saver import Saver
from megatron_sky.config.schema import Config
from megatron_sky.data.loader import Batch
from megatron_sky.distributed import device
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.model.build import build_model
from megatron_sky.model.flops import num_parameters
from megatron_sky.optim.build import build_optimizer

PROGRESS = {"step": 1, "consumed_samples": 0, "consumed_tokens": 0}
STEPS = 4  # timed without a save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary folder")
    parser.add_argument("--layers", type=int, default=24, help="24: 500 M parameters")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), options.layers, options.rounds)


def recipe(folder: Path, layers: int, beside: bool) -> Config:
    return Config.model_validate(
        {
            "model": {
                "vocab_size": 32_000,
                "hidden_size": 1280,
                "ffn_hidden_size": 3456,
                "num_layers": layers,
                "num_attention_heads": 10,
                "seq_length": 128,
            },
            "precision": {"dtype": "fp32"},
            "schedule": {"style": "constant", "lr": 1e-3},
            "train": {"run_dir": str(folder), "tokens": 1, "global_batch_size": 1},
            "checkpoint": {"async_save": beside},
        }
    )


def run(folder: Path, layers: int, rounds: int) -> None:
    config = recipe(folder, layers, beside=True)
    device.setup()
    held: dict[str, list[float]] = {}
    with open_context(config.parallel, RankInfo()) as context:
        context.seed_step(1, 0)
        sections = {"parallel": config.parallel, "precision": config.precision}
        model = build_model(config.model, **sections, train=config.train, context=context)
        optimizer = build_optimizer(config.optimizer, schedule=config.schedule, **sections, chunks=model.chunks)
        loop = BareLoop(model, optimizer, [batch(config)])
        loop.step()  # makes the moments
        print(f"{num_parameters(config.model) / 1e6:.0f} M parameters, fp32, with optimizer state", flush=True)
        savers = {
            beside: Saver(
                folder,
                config=recipe(folder, layers, beside),
                context=context,
                chunks=model.chunks,
                optimizer=optimizer,
                fingerprint=dict,
            )
            for beside in (False, True)
        }
        for _ in range(rounds):
            for beside in (False, True):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                os.sync()
                measure_save(savers[beside], loop if beside else None, held)
            size = sum(record.size for record in store.read_manifest(store.folder_of(folder, 1)).values())
            measure_disk(folder, size, held)
            measure_load(store.folder_of(folder, 1), context, model.chunks, optimizer, held)
    tell(held, size)


def batch(config: Config) -> Batch:
    tokens = torch.randint(config.model.vocab_size, (1, config.model.seq_length + 1))
    places = torch.arange(config.model.seq_length)[None]
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(1, config.model.seq_length), places)


def measure_save(saver: Saver, loop: BareLoop | None, held: dict) -> None:
    """A save beside the loop, or one that is waited for."""
    start = time.perf_counter()
    if loop is None:
        (ended,) = saver.start(PROGRESS)
        assert ended.failure is None, ended.failure
        note(held, "saving, waited for", time.perf_counter() - start)
        return
    for _ in range(STEPS):
        loop.step()
    step = (time.perf_counter() - start) / STEPS
    start, steps = time.perf_counter(), 0
    ended = saver.start(PROGRESS)
    note(held, "saving beside training, its start", time.perf_counter() - start)
    while not ended:
        loop.step()
        steps += 1
        ended = saver.poll()
        if steps == 1:
            note(held, "saving beside training, start and first step more", time.perf_counter() - start - step)
    assert ended[0].failure is None, ended[0].failure
    note(held, "saving beside training, until whole", time.perf_counter() - start)
    note(held, "saving beside training, what it costs", time.perf_counter() - start - steps * step)
    note(held, "a step without a save", step)


def measure_disk(folder: Path, size: int, held: dict) -> None:
    """Plain sequential writing (flushed) and reading (not from memory) of `size` bytes."""
    path, block = folder / "plain", os.urandom(1 << 24)
    os.sync()
    start = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    note(held, "writing as many bytes plainly", time.perf_counter() - start)
    forget(path)
    start = time.perf_counter()
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    note(held, "reading as many bytes plainly", time.perf_counter() - start)
    path.unlink()


def measure_load(folder: Path, context, chunks: list, optimizer, held: dict) -> None:
    for path in folder.iterdir():
        forget(path)
    start = time.perf_counter()
    store.verify(folder)
    note(held, "verifying", time.perf_counter() - start)
    for path in folder.iterdir():
        forget(path)
    start = time.perf_counter()
    state.load(folder, context=context, chunks=chunks, optimizer=optimizer)
    note(held, "loading", time.perf_counter() - start)


def forget(path: Path) -> None:
    """Drops the file from the page cache, so that the next read is the disk's."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def note(held: dict, name: str, seconds: float) -> None:
    held.setdefault(name, []).append(seconds)


def tell(held: dict, size: int) -> None:
    median = {name: statistics.median(times) for name, times in held.items()}
    for name, seconds in median.items():
        every = ", ".join(f"{one:.2f}" for one in held[name])
        print(f"{name:<52}{seconds:8.2f} s   {size / seconds / 1e6:8.0f} MB/s   ({every})")
    cost = median["saving beside training, what it costs"]
    print(f"cost beside training / waited for: {cost / median['saving, waited for']:.3f}")
    print(f"save / plain write rate: {median['writing as many bytes plainly'] / median['saving, waited for']:.2f}")
    print(f"load / plain read rate: {median['reading as many bytes plainly'] / median['loading']:.2f}")


if __name__ == "__main__":
    main()
