"""How long a save holds training up, beside training and waited for; saving and loading against the disk's rate.

One process with a LLaMA-like model and its optimizer state, on this machine's disk. Each round saves twice: waited
for (checkpoint.async_save: false), and beside training, where only `Saver.start` and the polls of each step count
as held up. The disk's rate is measured in the same round by writing and reading as many bytes plainly.

    python benchmarks/checkpoint_save.py [--folder DIR] [--layers 24] [--rounds 3]
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from megatron_sky.checkpoint import state, store
from megatron_sky.checkpoint.saver import Saver
from megatron_sky.config.schema import Config
from megatron_sky.distributed import device
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.model.build import build_model
from megatron_sky.model.flops import num_parameters
from megatron_sky.optim.build import build_optimizer

PROGRESS = {"step": 1, "consumed_samples": 0, "consumed_tokens": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary folder")
    parser.add_argument("--layers", type=int, default=24, help="24: 500 M parameters")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
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
        for chunk in model.chunks:
            chunk.zero_grad_buffer()
        optimizer.step()  # makes the moments
        print(f"{num_parameters(config.model) / 1e6:.0f} M parameters, fp32, with optimizer state")
        for _ in range(rounds):
            for beside in (False, True):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                saver = Saver(
                    folder,
                    config=recipe(folder, layers, beside),
                    context=context,
                    chunks=model.chunks,
                    optimizer=optimizer,
                    fingerprint=dict,
                )
                measure_save(saver, beside, held)
            size = sum(record.size for record in store.read_manifest(store.folder_of(folder, 1)).values())
            measure_disk(folder, size, held)
            measure_load(store.folder_of(folder, 1), context, model.chunks, optimizer, held)
    tell(held, size)


def measure_save(saver: Saver, beside: bool, held: dict) -> None:
    os.sync()
    start = time.perf_counter()
    ended = saver.start(PROGRESS)
    if not beside:
        note(held, "saving, waited for", time.perf_counter() - start)
        return
    hold = time.perf_counter() - start
    while not ended:
        time.sleep(0.2)  # a training step
        polled = time.perf_counter()
        ended = saver.poll()
        hold += time.perf_counter() - polled
    note(held, "held up by saving beside training", hold)
    note(held, "saving beside training, until whole", time.perf_counter() - start)


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
        print(f"{name:<40}{seconds:8.2f} s   {size / seconds / 1e6:8.0f} MB/s")
    print(f"held up / waited for: {median['held up by saving beside training'] / median['saving, waited for']:.3f}")
    print(f"save / plain write rate: {median['writing as many bytes plainly'] / median['saving, waited for']:.2f}")
    print(f"load / plain read rate: {median['reading as many bytes plainly'] / median['loading']:.2f}")


if __name__ == "__main__":
    main()
