"""Any source to a Hugging Face folder: sharded safetensors with index, configs, tokenizer files, chat template.

One weight at a time is read, split by its rule and written; behind it the one before is read back from the file and
compared. The kernel answers the read-back, from its cache or from the disk. That a rule joined again gives back the
weight is proven on the first layer, bit for bit; the rules of all layers are the same.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import read_ahead, same_bits
from megatron_sky.convert.huggingface import config as hf_config
from megatron_sky.convert.huggingface import families
from megatron_sky.convert.huggingface.safetensors_file import Entry, build_header, read_tensors
from megatron_sky.convert.output import (
    DEFAULT_FILE_SIZE,
    Converted,
    Expected,
    Output,
    WeightFile,
    converted_already,
    describe_source,
    plan_files,
    prepared,
)
from megatron_sky.convert.sources import Source
from megatron_sky.errors import CheckpointError
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import to_huggingface

log = get_logger(__name__)

INDEX = "model.safetensors.index.json"
_LATER_LAYERS = tuple(f"{weights.LAYERS}{digit}" for digit in "123456789")


def write_hf(
    source: Source,
    out: Path,
    *,
    architecture: str | None = None,
    file_size: int = DEFAULT_FILE_SIZE,
    card: Callable[[Path], str] | None = None,
) -> Converted:
    """Writes `source` as a Hugging Face folder and proves every tensor. Raises CheckpointError; then `out` isn't there.

    `architecture` None: the one of transformers that computes the same (`families.architecture_for`). `card` gives the
    text of README.md from the folder whose weight files are written.
    """
    architecture = architecture or families.architecture_for(source.model)
    families.check_architecture(source.model, architecture)
    conversion = {"to": architecture, "file_size": file_size, **describe_source(source)}
    if done := converted_already(out, conversion):
        log.info("%s: is converted and whole already", out)
        return done
    with prepared(out, conversion) as output:
        return _write(source, output, architecture, file_size, card)


def _write(source: Source, output: Output, architecture: str, file_size: int, card: Callable | None) -> Converted:
    plan = plan_files(source, file_size)
    names = _file_names(len(plan))
    todo = [
        weight for file, listed in zip(names, plan, strict=True) if file not in output.finished for weight in listed
    ]
    output.check_space(sum(source.weights[weight].num_bytes for weight in todo))
    for file, listed in zip(names, plan, strict=True):
        if file not in output.finished:
            output.add(file, _write_file(source, output.folder / file, listed, architecture))
            log.info("%s: %d tensors written and proven", file, len(listed))
    _write_index(source, output, plan, names, architecture)
    special_ids = {}
    if source.tokenizer is None:
        log.warning("%s: has no tokenizer, so the folder gets none; --tokenizer FILE adds it", source.folder)
    else:
        special_ids = to_huggingface.write(source.tokenizer, output.folder, adds_begin=source.adds_begin)
    config = hf_config.build_config(
        source.model, architecture=architecture, dtype=source.dtype, special_ids=special_ids
    )
    if card is not None:
        output.write_text("README.md", card(output.folder))
    output.write_text(hf_config.GENERATION, _json(hf_config.build_generation_config(special_ids)))
    output.write_text(hf_config.CONFIG, _json(config))
    return output.publish(len(source.weights), source.num_bytes, made_from=source.kind, progress=source.progress)


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_file(source: Source, path: Path, listed: list[str], architecture: str) -> dict:
    rules = [families.rule_for(name, source.model, architecture) for name in listed]
    entries = [
        Entry(name, source.weights[weight].dtype, shape)
        for weight, rule in zip(listed, rules, strict=True)
        for name, shape in zip(rule.names, rule.shapes, strict=True)
    ]
    with WeightFile(path) as file:
        file.write(build_header(entries))
        loaded = read_ahead(source.weights[weight] for weight in listed)
        for weight, rule, bits in zip(listed, rules, loaded, strict=True):
            _write_weight(file, bits, rule, prove_rule=not weight.startswith(_LATER_LAYERS))
        _prove_header(path, entries)
        return file.finish()


def _write_weight(file: WeightFile, bits: np.ndarray, rule: families.Rule, *, prove_rule: bool) -> None:
    """Writes one weight's parts and has them read back; `prove_rule`: proves first that they join to the weight."""
    parts = [np.ascontiguousarray(part) for part in rule.split(bits)]
    if prove_rule and not same_bits(rule.join(parts), bits):
        raise CheckpointError(f"{file.path}: {', '.join(rule.names)} don't join to the weight again")
    expected = []
    for name, part in zip(rule.names, parts, strict=True):
        expected.append(Expected(file.size, part, name))
        file.write(part.reshape(-1))
    file.prove(expected)


def _prove_header(path: Path, entries: list[Entry]) -> None:
    """The finished file, opened as any reader does, lists just these tensors."""
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in read_tensors(path).items()}
    if found != {entry.name: (entry.dtype, entry.shape) for entry in entries}:
        raise CheckpointError(f"{path}: read back, its header lists other tensors than were written")


def _write_index(source: Source, output: Output, plan: list[list[str]], names: list[str], architecture: str) -> None:
    if len(names) == 1:
        return
    listed = {
        name: file
        for file, held in zip(names, plan, strict=True)
        for weight in held
        for name in families.rule_for(weight, source.model, architecture).names
    }
    output.write_text(INDEX, _json({"metadata": {"total_size": source.num_bytes}, "weight_map": listed}))


def _json(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
