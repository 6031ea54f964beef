"""`megatron-sky doctor`: what this machine has for a run, what is missing, what that costs, and how to get it.

Facts are gathered (`facts`), tried out (`trials`: ranks that talk, a disk that writes), judged by fixed rules
(`findings`, pure) and shown (`page`).
"""

from dataclasses import asdict
from pathlib import Path

from megatron_sky.doctor import facts, findings, trials


def examine(run_dir: Path, *, ranks: int | None = None, disk_mib: int = 256) -> dict:
    """Everything found, as plain data: `facts`, `trials`, `findings`, `healthy`. Takes some seconds.

    `ranks`: local processes of the self-test; None: one a GPU, or 2 on a CPU. `disk_mib`: size of the file that is
    written into `run_dir` (or its nearest parent that exists) and removed again.
    """
    gathered = facts.gather()
    world = ranks or max(len(gathered["gpus"]), 1 if gathered["gpus"] else 2)
    measured = {"ranks": trials.ranks_talk(world), "disk": trials.disk_speed(run_dir, disk_mib)}
    judged = findings.judge(gathered, measured)
    return {
        "healthy": not any(finding.blocking for finding in judged),
        "facts": gathered,
        "trials": measured,
        "findings": [asdict(finding) for finding in judged],
    }
