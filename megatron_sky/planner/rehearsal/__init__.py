"""A training step of any rank of any job, run on a machine that has none of its GPUs: see docs/planner.md.

`rehearse`, `rehearse_stages` and `rehearse_all` start a process for it and give `Rehearsal`s.
"""

from megatron_sky.planner.rehearsal.process import Request, rehearse, rehearse_all, rehearse_stages, stage_ranks
from megatron_sky.planner.rehearsal.result import Operation, Rehearsal, Traffic

__all__ = [
    "Operation",
    "Rehearsal",
    "Request",
    "Traffic",
    "rehearse",
    "rehearse_all",
    "rehearse_stages",
    "stage_ranks",
]
