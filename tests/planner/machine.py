"""A measured machine whose every operator takes the seconds that its terms say: no rank measures anything."""

from megatron_sky.planner.calibration.sizes import STEPS, WORK_MICROSECONDS, sizes_of
from megatron_sky.planner.measured import COLLECTIVES, KINDS

RATE = 1e-10
"""Seconds of each operation, element or byte."""


def seconds_of(kind: str, *sizes: float) -> float:
    return RATE * KINDS[kind].terms(*sizes)[0] + 1e-6


def table(ranks: int, slower: float = 1.0) -> dict:
    """As `plan --calibrate` writes it; `slower`: by this factor than `seconds_of`."""
    seconds: dict[str, dict[str, list]] = {}
    for kind in KINDS:
        if kind in COLLECTIVES:
            rows = [(2, 1 << power) for power in (10, 16, 20, 24)] if ranks > 1 else []
        elif kind == "wait":
            rows = [(2, microseconds) for microseconds in WORK_MICROSECONDS] if ranks > 1 else []
        elif kind == "step":
            rows = list(STEPS)
        else:
            rows = list(sizes_of("gradients" if kind == "update" else kind, False))
        if rows:
            measured = [[*row, slower * seconds_of(kind, *row)] for row in rows]
            seconds[kind] = {"fp32": measured, "bf16": measured}
    return {"ranks": ranks, "threads": 2 // ranks, "reserve_gib": 0.5, "seconds": seconds}


def entry() -> dict:
    """Two cores, on which each of two ranks is half as fast as one alone."""
    return {
        "name": "two cores",
        "architecture": "cpu",
        "tflops": {"fp32": 0.02, "bf16": 0.02},
        "memory_gib": 16,
        "memory_gb_per_s": 10,
        "link_gb_per_s": 10,
        "node_gb_per_s": 10,
        "watts": None,
        "num_sms": 2,
        "gpus_per_node": 2,
        "shared": True,
        "source": "made up",
        "measured": [table(1), table(2, slower=2.0)],
    }
