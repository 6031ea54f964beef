"""Any source to a native torch_dist checkpoint, from which a run starts in any layout (`checkpoint.init_from`).

The folder is what a run of one process would have saved: tensors as `dist_files` writes them, the common state,
config.yaml, train_state.json, manifest. Without its optimizer, unless the source's is handed over (`training_state`),
so that a run goes on from it. Padding rows of the vocabulary are then the source's, else zeros. At the end the whole is
opened as any reader opens it.
"""

import json
from dataclasses import replace
from pathlib import Path

from megatron_sky.checkpoint import description, state, store
from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor, common_format
from megatron_sky.config import Config, dump_config
from megatron_sky.convert.dist_files import DistTensors, stored_key, write_file, write_state
from megatron_sky.convert.huggingface import config as hf_config
from megatron_sky.convert.output import (
    DEFAULT_FILE_SIZE,
    RECORD,
    Converted,
    Output,
    convert,
    plan_files,
    write_weights,
)
from megatron_sky.convert.sources import HF, Source
from megatron_sky.convert.training_state import TrainingState, optimizer_common, optimizer_tensors
from megatron_sky.errors import CheckpointError
from megatron_sky.files import json_text
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files

log = get_logger(__name__)

_PRECISION = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


def write_native(
    source: Source,
    out: Path,
    *,
    vocab_multiple: int | None = None,
    file_size: int = DEFAULT_FILE_SIZE,
    training: TrainingState | None = None,
    is_sharded: bool | None = None,
) -> Converted:
    """Writes `source` as a native checkpoint and verifies it. Raises CheckpointError; then `out` isn't there.

    `vocab_multiple`: rows of the embedding are padded to a multiple of it, which the target's tensor-parallel size must
    divide; None: the recipe's default. With `training` the checkpoint is one that a run goes on from; `is_sharded`: in
    the form of the distributed optimizer; None: if `training` is.
    """
    if vocab_multiple is not None:
        source = replace(source, model=source.model.model_copy(update={"vocab_multiple": vocab_multiple}))
    if training is not None:
        training = _in_form(source, training, is_sharded)
    source = _one_format_for_all_layers(source)
    config = _recipe(source, training)
    beside = {} if training is None else optimizer_tensors(training, source.dtype)
    content = _content(source, training, beside)
    conversion = {"to": "native", "file_size": file_size, "padded_vocab_size": source.model.padded_vocab_size}
    if training is not None:
        conversion |= {"with_optimizer": True, "is_sharded": training.is_sharded}
        source = replace(source, warnings=(*source.warnings, *training.warnings))
    return convert(
        source,
        out,
        conversion,
        lambda output: _write(source, content, training, output, config, plan_files(source, file_size, beside)),
    )


def _in_form(source: Source, training: TrainingState, is_sharded: bool | None) -> TrainingState:
    """`training` for the optimizer that goes on. Raises CheckpointError where the rows of the vocabulary don't fit."""
    if training.rows != source.model.padded_vocab_size:
        raise CheckpointError(
            f"{source.folder}: its embedding has {training.rows:,} rows, which are trained on; the recipe's would have "
            f"{source.model.padded_vocab_size:,}: vocab_size {source.model.vocab_size:,} to a multiple of "
            f"{source.model.vocab_multiple}\n  fix: give --vocab-size and --vocab-multiple of which {training.rows:,} "
            "is the next multiple, and the same in the recipe (model.vocab_size, model.vocab_multiple)"
        )
    return training if is_sharded is None else replace(training, is_sharded=is_sharded)


def _content(source: Source, training: TrainingState | None, beside: dict[str, dict[str, LazyTensor]]) -> DistTensors:
    """All tensors of the checkpoint by name: the weights, and the optimizer's `beside` them."""
    if training is None:
        padded = source.model.padded_vocab_size
        rows = {name: padded for name in weights.VOCABULARY_ROWS if name in source.weights}
        return DistTensors(source.model.num_layers, source.weights, rows)
    tensors = {name: training.weights[name].widened(source.weights[name].dtype) for name in source.weights}
    return DistTensors(
        source.model.num_layers, tensors | {n: t for further in beside.values() for n, t in further.items()}
    )


def _one_format_for_all_layers(source: Source) -> Source:
    """The source with each weight in the same number format in all layers, which are one tensor in the checkpoint."""
    formats: dict[str, set[str]] = {}
    for name, tensor in source.weights.items():
        formats.setdefault(stored_key(name)[0], set()).add(tensor.dtype)
    wider = {key: common_format(dtypes) for key, dtypes in formats.items() if len(dtypes) > 1}
    if not wider:
        return source
    tensors = {
        name: tensor.widened(wider.get(stored_key(name)[0], tensor.dtype)) for name, tensor in source.weights.items()
    }
    keys = ", ".join(f"{key.removeprefix(weights.LAYERS)} ({dtype})" for key, dtype in wider.items())
    line = f"weights whose layers have several number formats are written in one that holds all their numbers: {keys}"
    return replace(source, weights=tensors, warnings=(*source.warnings, line))


def _recipe(source: Source, training: TrainingState | None) -> Config:
    """The recipe that goes with the weights: the model, its number format, and the least that a recipe must hold.

    No training here made this checkpoint, so there is no schedule or data to record; a run that starts from it has its
    own.
    """
    if unknown := source.formats.keys() - _PRECISION.keys():
        name = next(name for name, tensor in source.weights.items() if tensor.dtype in unknown)
        raise CheckpointError(
            f"{source.folder}: {name} is in {source.weights[name].dtype}, more than a run computes with\n"
            f"  fix: save it in one of {', '.join(_PRECISION)}"
        )
    known = {} if training is None else training.recipe
    train = {"tokens": source.model.seq_length, "global_batch_size": 1} | known.get("train", {})
    if training is not None:
        train["tokens"] = max(train["tokens"], training.consumed_tokens + source.model.seq_length)
    return Config.model_validate(
        {
            "model": source.model.model_dump() | {"preset": None},
            "precision": {"dtype": _PRECISION[source.dtype]},
            "parallel": {} if training is None else {"distributed_optimizer": training.is_sharded},
            "tokenizer": {"path": None},
            "schedule": known.get("schedule", {"lr": 1e-5, "style": "constant"}),
            "optimizer": known.get("optimizer", {}),
            "train": {"run_dir": "none"} | train,
        }
    )


def _write(
    source: Source,
    content: DistTensors,
    training: TrainingState | None,
    output: Output,
    config: Config,
    plan: list[list[str]],
) -> dict:
    files = {f"__0_{number}.distcp": names for number, names in enumerate(plan)}
    write_weights(content.tensors, output, files, lambda path, names: write_file(content, path, names))
    common = {"content_metadata": state.content_metadata(holds_optimizer=training is not None)}
    if training is not None:
        common = {"optimizer": optimizer_common(training, source.dtype)} | common
    write_state(content, output, list(files), common)
    _write_description(source, output, config, training)
    known = {name: store.FileRecord(entry["size"], xxh3=entry["xxh3"]) for name, entry in output.finished.items()}
    rest = [name for name in store.files_of(output.folder) if name not in known and name != RECORD]
    records = known | store.hash_files(output.folder, rest, "xxh3")
    step = 0 if training is None else training.step
    output.write_text(store.MANIFEST, json_text(store.manifest_of(step, records), indent=1))
    return {}


def _write_description(source: Source, output: Output, config: Config, training: TrainingState | None) -> None:
    """What a checkpoint of ours says of itself in plain text, and its tokenizer."""
    output.write_text(description.CONFIG, dump_config(config))
    progress: dict[str, object] = {"step": 0, "consumed_samples": 0, "consumed_tokens": 0}
    order = {}
    if training is not None:
        progress = {
            "step": training.step,
            "consumed_samples": training.consumed_samples,
            "consumed_tokens": training.consumed_tokens,
            "session": "",
        }
        order = training.order
    layout = f"{description.CONVERTED} a {source.kind}: {source.folder.name}"
    described = {"progress": progress, "data": order, "layout": layout}
    output.write_text(store.TRAIN_STATE, description.train_state(described))
    if (kept := source.hugging_face) is not None:
        output.write_text(f"{hf_config.KEPT}/{hf_config.CONFIG}", json.dumps(kept.config, indent=1))
        if kept.generation is not None:
            output.write_text(f"{hf_config.KEPT}/{hf_config.GENERATION}", json.dumps(kept.generation, indent=1))
    if source.tokenizer is not None:
        tokenizer_files.copy(source.tokenizer, output.folder, settings=True)
    elif source.kind == HF:
        log.warning("%s: has no tokenizer, so the checkpoint gets none", source.folder)
