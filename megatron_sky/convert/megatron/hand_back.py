"""A checkpoint of ours as one of Megatron-LM's: a torch_dist folder, or mp_rank files, in a folder that it loads from.

    OUT/latest_checkpointed_iteration.txt     the iteration that Megatron-LM loads: written last
    OUT/iter_0001000/                         what `dist_files` or `rank_files` write, and the conversion's record

Random generators are not handed over, since there are none: Megatron-LM is told not to look for them where a checkpoint
can tell it (torch_dist), and by --no-load-rng where it can't.
"""

from dataclasses import replace
from pathlib import Path

from megatron_sky.checkpoint import description
from megatron_sky.checkpoint.reader import torch_dist
from megatron_sky.convert import training_state
from megatron_sky.convert.dist_files import DistTensors, write_file, write_state
from megatron_sky.convert.megatron import rank_files
from megatron_sky.convert.megatron.rank_files import HandedBack
from megatron_sky.convert.megatron.ranks import Layout
from megatron_sky.convert.megatron.settings import args_of, scheduler_of
from megatron_sky.convert.output import DEFAULT_FILE_SIZE, Converted, Output, convert, plan_files, write_weights
from megatron_sky.convert.sources import LATEST, NATIVE, Source, open_source
from megatron_sky.errors import CheckpointError
from megatron_sky.files import read_text, write_text

TORCH_DIST, TORCH = FORMATS = ("torch_dist", "torch")


def hand_back(
    path: Path,
    out: Path,
    *,
    checkpoint_format: str = TORCH_DIST,
    tp_size: int = 1,
    pp_size: int = 1,
    with_optimizer: bool = True,
    is_sharded: bool | None = None,
    transformer_impl: str = "transformer_engine",
    vocab_size: int | None = None,
    file_size: int = DEFAULT_FILE_SIZE,
) -> Converted:
    """Writes the checkpoint that `path` means into the save folder `out`. Raises CheckpointError; then it isn't there.

    `tp_size`, `pp_size`: the layout of mp_rank files; a torch_dist folder is loaded in any. `is_sharded`: for
    Megatron-LM's --use-distributed-optimizer; None: as the run's was. `transformer_impl`: whose parameter names and
    order mp_rank files have.
    """
    source = open_source(path, vocab_size=vocab_size)
    if source.kind != NATIVE:
        raise CheckpointError(f"{source.folder}: is a {source.kind}, not a {NATIVE}\n  fix: convert it to one first")
    layout = Layout(tp_size, pp_size, is_fused=transformer_impl != "local")
    content = _content(source, layout, checkpoint_format, with_optimizer, is_sharded)
    _check_layout(content)
    step = source.progress["step"]
    folder = out / f"iter_{step:07d}"
    _check_tracker(out, step)
    conversion = {"to": f"Megatron-LM {checkpoint_format}", "tp_size": tp_size, "pp_size": pp_size}
    conversion |= {"with_optimizer": with_optimizer, "is_sharded": content.common["args"].use_distributed_optimizer}
    conversion |= {"transformer_impl": transformer_impl, "file_size": file_size}
    if checkpoint_format == TORCH:
        done = convert(source, folder, conversion, lambda output: rank_files.write(content, output))
    else:
        done = convert(source, folder, conversion, lambda output: _write_dist(content, output, file_size))
    write_text(out / LATEST, str(step), sync=True)
    return done


def _content(
    source: Source, layout: Layout, checkpoint_format: str, with_optimizer: bool, is_sharded: bool | None
) -> HandedBack:
    training = None
    if with_optimizer:
        training, config = training_state.native_training(source.folder)
        training = training if is_sharded is None else replace(training, is_sharded=is_sharded)
        weights = training.weights
    else:
        config = description.read_description(source.folder).config
        weights = torch_dist.weight_tensors(source.folder, torch_dist.read_stored(source.folder))
    consumed = source.progress["consumed_samples"]
    sharded = config.parallel.distributed_optimizer if is_sharded is None else is_sharded
    args = args_of(
        config,
        layout,
        rows=weights["embedding.word_embeddings.weight"].shape[0],
        consumed_samples=consumed,
        step=source.progress["step"],
        is_sharded=sharded,
        with_optimizer=with_optimizer,
        checkpoint_format=checkpoint_format,
    )
    common = {"args": args, "checkpoint_version": 3.0, "iteration": source.progress["step"]}
    common |= {"num_floating_point_operations_so_far": 0, "opt_param_scheduler": scheduler_of(config, consumed)}
    return HandedBack(source, config, layout, weights, training, common)


def _check_layout(content: HandedBack) -> None:
    """Raises CheckpointError naming all that the layout does not divide."""
    model, layout = content.config.model, content.layout
    rows = content.weights["embedding.word_embeddings.weight"].shape[0]
    counts = {"model.query_groups": model.query_groups, "model.ffn_hidden_size": model.ffn_hidden_size}
    counts["rows of the embedding"] = rows
    wrong = [f"{name} = {count:,} is no multiple of {layout.tp_size}" for name, count in counts.items()]
    wrong = [line for line, count in zip(wrong, counts.values(), strict=True) if count % layout.tp_size]
    if model.num_layers % layout.pp_size:
        wrong.append(f"model.num_layers = {model.num_layers} is no multiple of {layout.pp_size} stages")
    if wrong:
        raise CheckpointError(
            f"{content.source.folder}: can't be cut for --tp {layout.tp_size} --pp {layout.pp_size}:\n  "
            + "\n  ".join(wrong)
            + "\n  fix: give sizes that divide them"
        )


def _check_tracker(out: Path, step: int) -> None:
    """Raises CheckpointError where `out` is a run's that has come further: it would go on from there no more."""
    tracker = out / LATEST
    latest = read_text(tracker).strip() if tracker.is_file() else ""
    if latest.isdigit() and int(latest) > step:
        raise CheckpointError(
            f"{tracker}: names iteration {int(latest):,}, later than {step:,}\n  fix: choose another folder"
        )


def _write_dist(content: HandedBack, output: Output, file_size: int) -> dict:
    source, training = content.source, content.training
    beside = {} if training is None else training_state.optimizer_tensors(training, source.dtype)
    tensors = content.weights | {name: tensor for further in beside.values() for name, tensor in further.items()}
    stored = DistTensors(content.config.model.num_layers, tensors)
    plan = plan_files(source, file_size, beside)
    files = {f"__0_{number}.distcp": names for number, names in enumerate(plan)}
    write_weights(tensors, output, files, lambda path, names: write_file(stored, path, names))
    metadata: dict[str, object] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    common = dict(content.common)
    if training is not None:
        common["optimizer"] = training_state.optimizer_common(
            training, source.dtype, content.config, is_torchs=not content.layout.is_fused
        )
        if training.is_sharded:
            metadata["distrib_optim_sharding_type"] = "fully_reshardable"
            metadata["distrib_optim_fully_reshardable_mem_efficient"] = False
    write_state(stored, output, list(files), common | {"content_metadata": metadata})
    return {}
