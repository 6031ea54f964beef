"""The state of a run of Megatron-LM, from a torch_dist folder or mp_rank files: moments, step, samples, schedule.

Where its optimizer lies depends on format and version; every form of megatron-core 0.7 to 0.19 is read. Its random
generators are not: each step here seeds its own, and without dropout no number of a run depends on them.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint.reader import torch_dist
from megatron_sky.checkpoint.reader.index import METADATA, read_index
from megatron_sky.checkpoint.reader.lazy import LazyTensor
from megatron_sky.checkpoint.reader.torch_files import TorchArchive, settings_of
from megatron_sky.checkpoint.reader.weights import MODEL_SPACE
from megatron_sky.convert import training_state
from megatron_sky.convert.megatron import flat_state, fragments, rank_state, split_files
from megatron_sky.convert.megatron.ranks import layout_of
from megatron_sky.convert.sources import MEGATRON_DIST, MEGATRON_SPLIT, Source
from megatron_sky.convert.training_state import KEYS, TrainingState
from megatron_sky.errors import CheckpointError

_NO_OPTIMIZER = "convert without --with-optimizer, and give the new run a short warm-up"
_ADAMW = ("adam",)


@dataclass(frozen=True)
class _Opened:
    """Megatron-LM's common state: `content` of `archive`, the saved args in it, and the optimizer's part."""

    archive: TorchArchive
    content: dict
    settings: dict
    optimizer: object


def open_training(source: Source) -> TrainingState:
    """What the run that saved `source` needs to go on. Raises CheckpointError where that is not all there, or is of an
    optimizer that isn't AdamW."""
    readers = {MEGATRON_DIST: _of_dist, MEGATRON_SPLIT: _of_files}
    return readers[source.kind](source)


def _of_dist(source: Source) -> TrainingState:
    folder = source.folder
    common = folder / torch_dist.COMMON
    archive = TorchArchive(common) if common.is_file() else torch_dist.object_archive(folder, "common_state")
    if archive is None:
        raise CheckpointError(f"{folder}: has no {torch_dist.COMMON}, and no common_state among its objects")
    held = archive.content(tolerant=True)
    opened = _opened(archive, held[0] if isinstance(held, list) and held else held, source)
    weights = torch_dist.weight_tensors(folder, torch_dist.read_stored(folder))
    moments = _dist_moments(source, opened.settings, weights)
    if moments is None:
        raise _without(folder)
    parts = opened.archive, opened.optimizer
    if (own := torch_dist.object_archive(folder, "optimizer.distributed.dp_group_idx_0.optimizer")) is not None:
        parts = own, _first(own.content(tolerant=True))
    return _state(source, opened, weights, moments, *parts)


def _dist_moments(source: Source, settings: dict, weights: dict) -> dict[str, dict[str, LazyTensor]] | None:
    """The moments in a torch_dist folder, in whichever form; None where there are none."""
    folder = source.folder
    if chained := next((k for k in read_index(folder / METADATA).tensors if k.startswith("chained_")), None):
        raise CheckpointError(
            f"{folder}: {chained}: holds several optimizers side by side, as of experts or several learning rates\n"
            f"  fix: {_NO_OPTIMIZER}"
        )
    if fragments.is_fragmented(folder, MODEL_SPACE):
        found = {key: fragments.fragments(folder, f"{MODEL_SPACE}{key}.") for key in ("exp_avg", "exp_avg_sq")}
        return {"param": fragments.fragments(folder, f"{MODEL_SPACE}fp32_param."), **found}
    if (stored := training_state.stored_moments(folder, weights)) is not None:
        return stored
    layout, rows = layout_of(settings, str(folder)), weights["embedding.word_embeddings.weight"].shape[0]
    if flat_state.has_buckets(folder):
        moments: flat_state.RankMoments | None = flat_state.read_buckets(folder, source.model, layout, rows)
    else:
        moments = flat_state.read_objects(folder, source.model, layout, rows, settings)
    if moments is None:
        return None
    paths = dict.fromkeys(moments, folder)
    return flat_state.joined(
        moments, paths, gated=source.model.activation == "swiglu", tied=source.model.tie_embeddings
    )


def _of_files(source: Source) -> TrainingState:
    checkpoint = split_files.open_split(source.folder)
    gated, tied = source.model.activation == "swiglu", source.model.tie_embeddings
    weights, _ = split_files.whole_tensors(checkpoint, gated=gated, tied=tied)
    moments: flat_state.RankMoments = {}
    first = None
    for rank, file in checkpoint.ranks.items():
        archive = TorchArchive(file.path)
        opened = _opened(archive, archive.content(tolerant=True), source)
        first = first or opened
        moments[rank] = _file_moments(file, opened, rank[1], tied=tied)
    assert first is not None, "an opened folder has a rank"
    paths = {rank: file.path for rank, file in checkpoint.ranks.items()}
    whole = flat_state.joined(moments, paths, gated=gated, tied=tied)
    return _state(source, first, weights, whole, first.archive, first.optimizer)


def _file_moments(file: split_files.RankFile, opened: _Opened, stage: int, *, tied: bool) -> list:
    """One rank's moments: of its own file, or of the distributed optimizer's beside it."""
    model = opened.content.get("model", opened.content.get("model0"))
    if isinstance(model, dict) and "language_model" in model:
        raise CheckpointError(
            f"{file.path}: is of Megatron-LM's models of before megatron-core, whose optimizer isn't read\n"
            f"  fix: load and save it once with --use-mcore-models; or {_NO_OPTIMIZER}"
        )
    if not isinstance(opened.optimizer, dict):
        raise _without(file.path)
    beside = file.path.parent / flat_state.STATE_FILE
    if beside.is_file():
        shapes = [{name: tensor.shape for name, tensor in chunk.items()} for chunk in file.chunks]
        return flat_state.of_archive(TorchArchive(beside), shapes, stage, opened.settings, is_tied=tied)
    if opened.settings.get("use_distributed_optimizer"):
        raise CheckpointError(f"{beside}: is missing: args.use_distributed_optimizer = True, whose state lies in it")
    return rank_state.rank_moments(opened.archive, opened.optimizer, file.chunks)


def _opened(archive: TorchArchive, content: object, source: Source) -> _Opened:
    settings = settings_of(content)
    if not isinstance(content, dict) or settings is None:
        raise CheckpointError(
            f"{archive.path}: holds no args, which say how far the run has come\n  fix: {_NO_OPTIMIZER}"
        )
    _refuse(settings, archive.path)
    if "optimizer" not in content and settings.get("no_save_optim"):
        raise _without(archive.path)
    return _Opened(archive, content, settings, content.get("optimizer"))


def _refuse(settings: dict, where: Path) -> None:
    """Raises CheckpointError naming all that makes the optimizer another than the one here."""
    wrong = []
    kind = settings.get("optimizer", "adam")
    if kind not in _ADAMW:
        wrong.append(f"args.optimizer = {kind!r}: only adam is trained with here, whose state it has not")
    if settings.get("decoupled_weight_decay") is False:
        wrong.append("args.decoupled_weight_decay = False: Adam with L2 regularisation; here weight decay is AdamW's")
    if settings.get("decoupled_lr") is not None:
        wrong.append(f"args.decoupled_lr = {settings['decoupled_lr']!r}: embeddings have a learning rate of their own")
    if settings.get("use_megatron_fsdp") or settings.get("use_torch_fsdp2"):
        wrong.append("args.use_megatron_fsdp or use_torch_fsdp2 = True: FSDP's state isn't read")
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong)
        raise CheckpointError(f"{where}: was trained by another optimizer:\n{listed}\n  fix: {_NO_OPTIMIZER}")


def _state(
    source: Source,
    opened: _Opened,
    weights: dict[str, LazyTensor],
    moments: dict[str, dict[str, LazyTensor]],
    archive: TorchArchive,
    optimizer: object,
) -> TrainingState:
    settings, content = opened.settings, opened.content
    groups, scaler = training_state.optimizer_parts(optimizer)
    step = training_state.number_in(opened.archive, content.get("iteration"))
    if step is None or not isinstance(settings.get("consumed_train_samples"), int):
        raise CheckpointError(
            f"{opened.archive.path}: iteration or args.consumed_train_samples is missing: {source.kind}"
        )
    updates = training_state.step_of(archive, optimizer, groups)
    schedule = content.get("opt_param_scheduler")
    warnings = _warnings(settings, schedule, updates, source.folder)
    return TrainingState(
        weights=weights,
        moments=training_state.checked_moments(weights, {key: moments[key] for key in KEYS}, source.folder),
        is_sharded=bool(settings.get("use_distributed_optimizer")),
        optimizer_step=int(step) if updates is None else updates,
        step=int(step),
        consumed_samples=settings["consumed_train_samples"],
        seq_length=settings.get("seq_length") or source.model.seq_length,
        vocab_multiple=_vocab_multiple(settings),
        loss_scale=training_state.loss_scale_of(archive, scaler),
        recipe=_recipe(settings, schedule, settings.get("seq_length") or source.model.seq_length),
        order=_order(settings),
        warnings=tuple(warnings),
    )


def _warnings(settings: dict, schedule: object, updates: int | None, folder: Path) -> list[str]:
    lines = []
    consumed = settings["consumed_train_samples"]
    if updates is None:
        lines.append("the optimizer says nowhere how many updates it has done: the iteration is taken")
    at = schedule.get("num_steps") if isinstance(schedule, dict) else None
    if isinstance(at, int) and at != consumed:
        lines.append(
            f"its learning rate stands at sample {at:,} of its schedule, its data at {consumed:,}; here both are one "
            "number, the data's"
        )
    if settings.get("skipped_train_samples"):
        lines.append(f"{settings['skipped_train_samples']:,} samples were skipped; they count as consumed")
    if settings.get("hidden_dropout") or settings.get("attention_dropout"):
        lines.append("its random generators are not taken over: from here on dropout draws other masks")
    return lines


def _recipe(settings: dict, schedule: object, seq_length: int) -> dict:
    """Schedule, optimizer and batch as the checkpoint tells them, so that what is handed back says them again."""
    known = schedule if isinstance(schedule, dict) else {}
    counts = {name: known.get(name) for name in ("lr_warmup_steps", "lr_decay_steps", "wd_incr_steps")}
    style = str(known.get("lr_decay_style", "")).lower()
    if style not in ("cosine", "linear", "constant", "wsd") or not all(isinstance(n, int) for n in counts.values()):
        return {}
    tokens = {name: int(count or 0) * seq_length for name, count in counts.items()}
    names = ("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad")
    return {
        "schedule": {
            "style": style,
            "lr": known["max_lr"],
            "min_lr": known["min_lr"],
            "warmup_tokens": tokens["lr_warmup_steps"],
            "decay_tokens": tokens["lr_decay_steps"],
        },
        "optimizer": {name: settings[name] for name in names if isinstance(settings.get(name), int | float)},
        "train": {"tokens": tokens["wd_incr_steps"], "global_batch_size": settings.get("global_batch_size") or 1},
    }


def _vocab_multiple(settings: dict) -> int | None:
    multiple = settings.get("make_vocab_size_divisible_by")
    return multiple * (settings.get("tensor_model_parallel_size") or 1) if isinstance(multiple, int) else None


def _order(settings: dict) -> dict:
    """GPTDataset's order, of which the args say all but the files: the recipe's own are taken."""
    order = {"sampling": "megatron", "seed": settings.get("seed"), "seq_length": settings.get("seq_length")}
    return {name: value for name, value in order.items() if value is not None}


def _first(content: object) -> object:
    return content[0] if isinstance(content, list) and content else content


def _without(where: Path) -> CheckpointError:
    return CheckpointError(f"{where}: was saved without its optimizer (--no-save-optim)\n  fix: {_NO_OPTIMIZER}")
