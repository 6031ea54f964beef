"""Checkpoint folders as tests want them: without tensors, or with another index."""

import pickle
from pathlib import Path

from megatron_sky.checkpoint import store
from megatron_sky.files import write_json
from tests.checkpoint.record import small


def write_checkpoint(run_dir: Path, step: int, tokens: int, num_files: int = 3) -> Path:
    """A whole checkpoint folder without tensors."""
    from megatron_sky.checkpoint.description import write_description

    final = store.folder_of(run_dir, step)
    temporary = final.with_name(final.name + ".tmp")
    temporary.mkdir(parents=True)
    for number in range(num_files):
        (temporary / f"shard_{number}").write_bytes(bytes([step, number]) * (1000 + 100 * number))
    progress = {"step": step, "consumed_tokens": tokens}
    write_description(temporary, small("run"), {"progress": progress, "data": {}, "layout": "one process"}, {})
    names = store.files_of(temporary)
    store.finish(temporary, final, step, store.hash_files(temporary, names, "xxh3"))
    return final


def rewrite(folder: Path, change) -> None:
    """Has `change(metadata)` change the index; the manifest is made to agree."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    records = store.read_manifest(folder) | store.hash_files(folder, [".metadata"])
    write_json(folder / store.MANIFEST, store.manifest_of(1, records))
