"""`megatron-sky plan --calibrate`: one table for each number of ranks that the machine can have, as a hardware file."""

import datetime
import os
import platform
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from queue import Empty

from megatron_sky.config import strict_yaml
from megatron_sky.distributed import cpu_products, device
from megatron_sky.distributed.helpers import how_it_ended, shared_memory_named, temporary_folder
from megatron_sky.errors import RunError
from megatron_sky.files import write_text
from megatron_sky.planner import hardware
from megatron_sky.versions import installed

DEFAULT_SECONDS = 100
_START_SECONDS = 12
"""Of a group of ranks: imports, models, buffers."""
_PATIENCE = 20
"""As many times the time that was planned a group may take, on a machine that others use."""
_DTYPES = ("fp32", "bf16")


def calibrate(output: Path, *, seconds: float = DEFAULT_SECONDS, say: Callable[[str], None] = print) -> None:
    """Measures this machine and writes its hardware file."""
    started = time.perf_counter()
    numbers = rank_numbers()
    own_seconds = max(1.0, seconds / len(numbers) - _START_SECONDS)
    tables = []
    for ranks in numbers:
        say(f"measuring   {ranks} rank(s) at once, about {own_seconds + _START_SECONDS:.0f} s")
        tables.append(measure_together(ranks, own_seconds, say))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, _head(tables) + _as_yaml(describe(tables)))
    gpu = hardware.find_gpu(str(output))
    for line in summary(gpu):
        say(line)
    say(f"written     {output}, in {time.perf_counter() - started:.0f} s; for plan RECIPE --gpus N --gpu {output}")


def rank_numbers() -> list[int]:
    """1, 2, the machine's half and the whole of it: as many ranks as it has cores or GPUs, at most."""
    whole = len(device.gpus()) or device.available_cores()
    return sorted({number for number in (1, 2, whole // 2, whole) if 1 <= number <= whole})


def measure_together(ranks: int, seconds: float, say: Callable[[str], None]) -> dict:
    """The table of so many ranks. Raises RunError where one of them fails."""
    from megatron_sky.planner.calibration.rank import Work

    spawn = get_context("spawn")
    with shared_memory_named(), temporary_folder() as folder:
        answers = spawn.Queue()
        store = str(folder / "store")
        processes = [
            spawn.Process(
                target=_serve, args=(Work(ranks, rank, store, _DTYPES, seconds), os.getpid(), answers), daemon=True
            )
            for rank in range(ranks)
        ]
        threads = os.environ.pop("OMP_NUM_THREADS", None)  # a rank takes its share of the cores, as in training
        try:
            for process in processes:
                process.start()
            return _wait(processes, answers, (seconds + _START_SECONDS) * _PATIENCE, say)
        finally:
            if threads is not None:
                os.environ["OMP_NUM_THREADS"] = threads
            for process in processes:
                process.kill()
                process.join()


def _serve(work, parent: int, answers) -> None:
    from megatron_sky.planner.calibration.rank import measure

    try:
        measure(work, parent, answers.put)
    except Exception as error:  # whatever a rank fails with ends the measurement, and is told
        answers.put(("failed", work.rank, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    answers.close()
    answers.join_thread()


def _wait(processes: list, answers, patience: float, say: Callable[[str], None]) -> dict:
    deadline = time.monotonic() + patience
    while True:
        try:
            answer = answers.get(timeout=0.5)
        except Empty:
            ended = [process.exitcode for process in processes if process.exitcode]
            if ended:
                raise RunError(f"calibration: a rank {how_it_ended(ended[0])}") from None
            if time.monotonic() > deadline:
                raise RunError(
                    f"calibration: no result within {patience:.0f} s\n  fix: try on an idle machine"
                ) from None
            continue
        if answer[0] == "failed":
            raise RunError(f"calibration: rank {answer[1]} of {len(processes)}: {answer[2]}")
        if answer[0] == "result":
            return answer[1]
        say(f"            round {answer[2]}, {answer[1]:.0f} s")


def describe(tables: list[dict]) -> dict:
    """The hardware file's fields. The known GPU of this name lends what can't be measured."""
    gpus = device.gpus()
    known = _known_gpu(gpus[0]["name"]) if gpus else None
    first, last = tables[0]["seconds"], tables[-1]["seconds"]
    whole = len(gpus) or device.available_cores()
    link = _link(last)
    return {
        "name": gpus[0]["name"] if gpus else f"{_processor()}, {whole} cores",
        "architecture": known.architecture if known else ("gpu" if gpus else "cpu"),
        "tflops": {dtype: _peak(first["product_forward"][dtype]) for dtype in first["product_forward"]},
        "memory_gib": gpus[0]["memory_gib"] if gpus else _memory_gib(),
        "memory_gb_per_s": _memory_rate(first),
        "link_gb_per_s": link,
        "node_gb_per_s": known.node_gb_per_s if known else link,
        "watts": known.watts if known else None,
        "num_sms": known.num_sms if known else whole,
        "gpus_per_node": whole,
        "shared": not gpus,
        "source": f"measured by plan --calibrate on {datetime.date.today()}, torch {installed('torch')}",
        "measured": tables,
    }


def _known_gpu(name: str) -> hardware.Gpu | None:
    words = name.lower().replace("nvidia", " ").replace("-", " ").split()
    return next((gpu for known, gpu in hardware.gpus().items() if known in words), None)


def _peak(rows: list) -> float:
    return float(f"{max(2 * m * n * k / seconds for m, n, k, seconds in rows) / 1e12:.4g}")


def _link(seconds: dict) -> float:
    """One direction, in GB/s: of the largest send; of a machine of one rank, where none was made, its memory's."""
    if "send" not in seconds:
        return _memory_rate(seconds)
    rows = next(iter(seconds["send"].values()))
    return float(f"{rows[-1][1] / rows[-1][2] / 1e9:.4g}")


def _memory_rate(seconds: dict) -> float:
    """GB/s of setting gradients to zero and scaling them: 12 bytes a parameter."""
    parameters, longest = next(iter(seconds["gradients"].values()))[-1]
    return float(f"{12 * parameters / longest / 1e9:.4g}")


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine() or cpu_products.vendor()


def _head(tables: list[dict]) -> str:
    numbers = ", ".join(str(table["ranks"]) for table in tables)
    return (
        f"# Measured by megatron-sky plan --calibrate with {numbers} rank(s) at once. seconds: rows of\n"
        "# sizes and seconds of each kind of operator and format, see docs/planner.md. Not measured: node_gb_per_s\n"
        "# (--network says otherwise), watts (null: no energy is told).\n"
    )


def _as_yaml(entry: dict) -> str:
    """A row of measurements to a line."""
    lines = [strict_yaml.dump({name: value for name, value in entry.items() if name != "measured"}), "measured:\n"]
    for table in entry["measured"]:
        lines.append(f"- ranks: {table['ranks']}\n  threads: {table['threads']}\n")
        lines.append(f"  reserve_gib: {table['reserve_gib']}\n  seconds:\n")
        for kind, formats in table["seconds"].items():
            lines.append(f"    {kind}:\n")
            for dtype, rows in formats.items():
                lines.append(f"      {dtype}:\n")
                lines += [f"      - [{', '.join(_number(value) for value in row)}]\n" for row in rows]
    return "".join(lines)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4e}"


def summary(gpu: hardware.Gpu) -> list[str]:
    """The main rates by number of ranks."""
    assert gpu.measured is not None
    lines = [f"machine     {gpu.name}, {gpu.memory_gib:g} GiB"]
    for rates in gpu.measured.tables:
        products = ", ".join(
            f"{rates.peak(dtype) / 1e9:,.0f} GFLOP/s in {dtype}"
            for kind, dtype in rates.curves
            if kind == "product_forward"
        )
        layer, _, step = rates.overhead("fp32")
        lines.append(
            f"{rates.ranks:3} rank(s)  products up to {products}; AdamW "
            f"{1e9 * rates.seconds('update', 'fp32', 1 << 23) / (1 << 23):.2f} ns a parameter; starting a layer "
            f"{1e6 * layer:.0f} us, a step {1e3 * step:.1f} ms"
        )
        if ("all_reduce", "fp32") in rates.curves:
            size = 1 << 24
            seconds = rates.collective("all_reduce", "fp32", rates.ranks, size)
            lines.append(
                f"{'':12}all-reduce of 16 MiB {1e3 * seconds:.1f} ms, of 1 KiB "
                f"{1e6 * rates.collective('all_reduce', 'fp32', rates.ranks, 1024):.0f} us"
            )
    return lines
