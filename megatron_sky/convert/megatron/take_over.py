"""A run of Megatron-LM as a run folder of ours that holds its checkpoint, from which `train` goes on."""

from pathlib import Path

from megatron_sky.checkpoint import store
from megatron_sky.convert.megatron.training import open_training
from megatron_sky.convert.native import write_native
from megatron_sky.convert.output import DEFAULT_FILE_SIZE, Converted
from megatron_sky.convert.sources import MEGATRON_DIST, MEGATRON_SPLIT, open_source
from megatron_sky.errors import CheckpointError


def take_over(
    path: Path,
    run_dir: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    recipe: Path | None = None,
    vocab_multiple: int | None = None,
    is_sharded: bool | None = None,
    file_size: int = DEFAULT_FILE_SIZE,
) -> Converted:
    """Writes the checkpoint in `path` with its optimizer as `run_dir`'s. Raises CheckpointError; then it isn't there.

    Other arguments as of `open_source` and `write_native`. `run_dir` may hold no other checkpoint, since a run goes on
    from its latest.
    """
    source = open_source(path, tokenizer=tokenizer, vocab_size=vocab_size, recipe=recipe)
    if source.kind not in (MEGATRON_DIST, MEGATRON_SPLIT):
        raise CheckpointError(f"{source.folder}: is a {source.kind}, not a {MEGATRON_DIST} or {MEGATRON_SPLIT}")
    training = open_training(source)
    out = store.folder_of(run_dir, training.step)
    if others := [folder for _, folder in store.list_checkpoints(run_dir) if folder != out]:
        raise CheckpointError(
            f"{run_dir}: holds {others[-1].name} already: it is a run of its own\n  fix: choose another folder"
        )
    if vocab_multiple is None and recipe is None:
        vocab_multiple = training.vocab_multiple
    return write_native(
        source, out, vocab_multiple=vocab_multiple, file_size=file_size, training=training, is_sharded=is_sharded
    )
