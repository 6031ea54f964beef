"""The latest checkpoint of a run, verified by all ranks together: each hashes its share of the files, and all agree.

A checkpoint of 13 B parameters has some 200 GB. One rank would read them in minutes, while all others wait.
"""

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from megatron_sky.checkpoint import store
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError


def find_latest(run_dir: Path, context: ParallelContext, warn: Callable[[str], None]) -> Path | None:
    """`store.find_latest`, with the same answer or error on every rank; rank 0 warns. Collective."""
    folders = context.from_first_rank(lambda: [folder for _, folder in store.list_checkpoints(run_dir)])
    return store.newest_whole(
        folders, warn if context.rank == 0 else lambda text: None, check=partial(verify, context=context)
    )


def resolve(path: Path, context: ParallelContext, warn: Callable[[str], None]) -> Path:
    """`store.resolve`, with the same answer or error on every rank; rank 0 warns. Collective."""
    if context.from_first_rank(lambda: store.is_checkpoint(path)):
        verify(path, context)
        return path
    latest = find_latest(path, context, warn)
    if latest is None:
        raise store.holds_none(path)
    return latest


def verify(folder: Path, context: ParallelContext) -> None:
    """`store.verify` by all ranks together: raises the same CheckpointError on every rank. Collective."""
    records = context.from_first_rank(lambda: store.check_sizes(folder))
    sizes = {name: record.size for name, record in records.items()}
    share = {name: records[name] for name in store.share_of(sizes, context.rank, context.world_size)}
    failures = [failure for failure in context.gather_objects(_check(folder, share, context.rank)) if failure]
    if failures:
        raise next((failure for failure in failures if isinstance(failure, store.UnreadableHere)), failures[0])


def _check(folder: Path, share: dict[str, store.FileRecord], rank: int) -> CheckpointError | None:
    """What is wrong with this rank's share, or with its sight of the folder, which rank 0 has just seen."""
    unseen = [name for name in (store.MANIFEST, *share) if not (folder / name).is_file()]
    if unseen:
        return store.UnreadableHere(
            f"{folder / unseen[0]}: rank {rank} on {socket.gethostname()} does not see it, and rank 0 does\n"
            f"  fix: give every node the run's file system, under the same path"
        )
    try:
        store.check_hashes(folder, share)
    except CheckpointError as error:
        return error
    return None
