"""Trying it out: local ranks that talk to each other, and a disk that writes."""

import os
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from queue import Empty

from megatron_sky.distributed import device
from megatron_sky.distributed.helpers import end_with, shared_memory_named, temporary_folder
from megatron_sky.distributed.launch import LOOPBACK, RankInfo
from megatron_sky.distributed.rendezvous import choose_interface
from megatron_sky.errors import RunError

TIMEOUT_SECONDS = 120
ELEMENTS = 1 << 22  # 16 MiB of fp32 for the speed


def ranks_talk(world_size: int) -> dict:
    """Starts `world_size` processes that check an all-reduce, an all-gather, a reduce-scatter and a ring of sends.

    `ok`, `reason` (of the first rank that failed), `all_reduce_gb_per_second` (bytes of the tensor over time).
    """
    try:
        with shared_memory_named():
            return _talk(world_size)
    except RunError as error:
        reason = str(error).partition("\n")[0]
        return {"world_size": world_size, "backend": device.collective_backend(), "ok": False, "reason": reason} | {
            "all_reduce_gb_per_second": None
        }


def _talk(world_size: int) -> dict:
    spawn = get_context("spawn")
    results = spawn.Queue()
    with temporary_folder() as folder:
        meeting = str(folder / "store")
        processes = [
            spawn.Process(target=_rank, args=(os.getpid(), rank, world_size, meeting, results))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            answers = _collect(processes, results)
        finally:
            for process in processes:
                process.kill()
                process.join()
    failed = [reason for reason, _ in answers if reason]
    return {
        "world_size": world_size,
        "backend": device.collective_backend(),
        "ok": not failed,
        "reason": failed[0] if failed else "",
        "all_reduce_gb_per_second": None if failed else round(min(speed for _, speed in answers), 3),
    }


def _collect(processes: list, results) -> list[tuple[str, float]]:
    answers: list[tuple[str, float]] = []
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(answers) < len(processes) and not any(reason for reason, _ in answers):
        try:
            answers.append(results.get(timeout=0.5))
        except Empty:
            dead = [process.exitcode for process in processes if process.exitcode]
            if dead:
                answers.append((f"a rank died with exit code {dead[0]}", 0.0))
            elif time.monotonic() > deadline:
                answers.append((f"no answer within {TIMEOUT_SECONDS} s", 0.0))
    return answers


def _rank(parent: int, rank: int, world_size: int, store_file: str, results) -> None:
    end_with(parent)
    import torch
    import torch.distributed as dist

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    try:
        target = device.use(rank)
        choose_interface(RankInfo(rank, world_size, rank, world_size, LOOPBACK))
        store = dist.FileStore(store_file, world_size)
        dist.init_process_group(device.collective_backend(), store=store, rank=rank, world_size=world_size)
        wrong = _wrong_collective(rank, world_size, target)
        results.put((wrong, _speed(target) if not wrong else 0.0))
        dist.barrier()
        dist.destroy_process_group()
    except (RuntimeError, OSError, ValueError) as error:
        results.put((f"rank {rank}: {str(error).splitlines()[0]}", 0.0))
    results.close()
    results.join_thread()


def _wrong_collective(rank: int, world_size: int, target) -> str:
    """The first collective whose numbers are wrong, in words."""
    import torch
    import torch.distributed as dist

    mine = torch.full((world_size,), float(rank + 1), device=target)
    total = world_size * (world_size + 1) / 2
    summed = mine.clone()
    dist.all_reduce(summed)
    if summed.tolist() != [total] * world_size:
        return f"rank {rank}: an all-reduce gave {summed.tolist()}"
    whole = mine.new_empty(world_size * world_size)
    dist.all_gather_into_tensor(whole, mine)
    if whole.tolist() != [float(1 + index // world_size) for index in range(world_size**2)]:
        return f"rank {rank}: an all-gather gave {whole.tolist()}"
    part = mine.new_empty(1)
    dist.reduce_scatter_tensor(part, mine)
    if part.tolist() != [total]:
        return f"rank {rank}: a reduce-scatter gave {part.tolist()}"
    if world_size > 1:
        got = torch.empty_like(mine)
        ring = [
            dist.P2POp(dist.isend, mine, (rank + 1) % world_size),
            dist.P2POp(dist.irecv, got, (rank - 1) % world_size),
        ]
        for request in dist.batch_isend_irecv(ring):
            request.wait()
        if got.tolist() != [float((rank - 1) % world_size + 1)] * world_size:
            return f"rank {rank}: a ring of sends gave {got.tolist()}"
    return ""


def _speed(target, rounds: int = 5) -> float:
    """Gigabytes a second of an all-reduce, the fastest of some."""
    import torch
    import torch.distributed as dist

    tensor = torch.ones(ELEMENTS, device=target)
    best = float("inf")
    for _ in range(rounds):
        dist.barrier()
        device.synchronize()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        device.synchronize()
        best = min(best, time.perf_counter() - start)
    return ELEMENTS * 4 / best / 1e9


def disk_speed(run_dir: Path, mebibytes: int) -> dict:
    """Writes a file of this size to disk and removes it: `write_mb_per_second`, `free_gb`, `folder`, `reason`."""
    folder = run_dir.absolute()
    while not folder.is_dir():
        folder = folder.parent
    result: dict[str, str | float | None] = {
        "folder": str(folder),
        "reason": "",
        "write_mb_per_second": None,
        "free_gb": None,
    }
    path = folder / f".megatron_sky_doctor_{os.getpid()}"
    try:
        seconds = _writing_seconds(path, mebibytes)
        state = os.statvfs(folder)
        result["write_mb_per_second"] = round(mebibytes * (1 << 20) / seconds / 1e6, 1)
        result["free_gb"] = round(state.f_bavail * state.f_frsize / 1e9, 1)
    except OSError as error:
        result["reason"] = f"can't be written: {error.strerror}"
    return result


def _writing_seconds(path: Path, mebibytes: int) -> float:
    """Writes a file to disk and removes it; raises OSError."""
    block = os.urandom(1 << 20)
    start = time.perf_counter()
    with open(path, "wb") as file:
        try:
            for _ in range(mebibytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return time.perf_counter() - start
        finally:
            path.unlink()
