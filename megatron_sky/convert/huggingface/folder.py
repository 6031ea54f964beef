"""Any source to a Hugging Face folder: sharded safetensors with index, configs, tokenizer files, chat template.

One weight at a time is read and split by its rule, while the one before is written and compared on its way to the
disk. That a rule joined again gives back the weight is proven on the first layer, bit for bit; the rules of all layers
are the same.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, ahead, same_bits
from megatron_sky.convert.huggingface import config as hf_config
from megatron_sky.convert.huggingface import families
from megatron_sky.convert.huggingface.safetensors_file import Entry, build_header
from megatron_sky.convert.output import DEFAULT_FILE_SIZE, Converted, Output, convert, plan_files, write_weights
from megatron_sky.convert.pieces import Piece, piece_of
from megatron_sky.convert.sources import Source
from megatron_sky.convert.weight_file import WeightFile
from megatron_sky.errors import CheckpointError
from megatron_sky.inference.hf_folder import check_name
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
    """Writes `source` as a Hugging Face folder and verifies it. Raises CheckpointError; then `out` isn't there.

    `architecture` None: the one of transformers that computes the same (`families.architecture_for`). `card` gives the
    text of README.md from the folder whose weight files are written.
    """
    check_name(out)
    architecture = architecture or families.architecture_for(source.model)
    families.check_architecture(source.model, architecture)
    conversion = {"to": architecture, "file_size": file_size}
    return convert(source, out, conversion, lambda output: _write(source, output, architecture, file_size, card))


def _write(source: Source, output: Output, architecture: str, file_size: int, card: Callable | None) -> dict:
    plan = plan_files(source, file_size)
    files = dict(zip(_file_names(len(plan)), plan, strict=True))
    write_weights(source.weights, output, files, lambda path, names: _write_file(source, path, names, architecture))
    if len(files) > 1:
        output.write_text(INDEX, _json(_index(source, files, architecture)))
    if card is not None:
        output.write_text("README.md", card(output.folder))
    _write_settings(source, output, architecture)
    return {"made_from": source.kind, "progress": source.progress}


def _write_settings(source: Source, output: Output, architecture: str) -> None:
    """config.json, generation_config.json and the tokenizer's files."""
    special_ids = {}
    if source.tokenizer is None:
        log.warning("%s: has no tokenizer, so the folder gets none; --tokenizer FILE adds it", source.folder)
    else:
        special_ids = to_huggingface.write(source.tokenizer, output.folder, adds_begin=source.adds_begin)
    kept = source.hugging_face
    config = hf_config.build_config(
        source.model, architecture=architecture, dtype=source.dtype, special_ids=special_ids, kept=kept
    )
    if len(source.formats) > 1:
        sizes = ", ".join(f"{name} {size:,} bytes" for name, size in source.formats.most_common())
        log.warning(
            "%s: its weights are of several number formats (%s), kept as they are; config.json names %s, in which "
            "transformers loads all of them unless it is asked for another",
            source.folder,
            sizes,
            TORCH_NAMES[source.dtype],
        )
    generation = hf_config.build_generation_config(special_ids, kept)
    if generation is not None:
        output.write_text(hf_config.GENERATION, _json(generation))
    output.write_text(hf_config.CONFIG, _json(config))


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_file(source: Source, path: Path, names: list[str], architecture: str) -> dict:
    rules = [families.rule_for(name, source.model, architecture) for name in names]
    entries = [
        Entry(name, source.weights[weight].dtype, shape)
        for weight, rule in zip(names, rules, strict=True)
        for name, shape in zip(rule.names, rule.shapes, strict=True)
    ]
    with WeightFile(path) as file:
        file.write(build_header(entries))
        for pieces in ahead(_parts(source, weight, rule) for weight, rule in zip(names, rules, strict=True)):
            for piece in pieces:
                file.write_piece(piece)
        return file.finish()


def _parts(source: Source, weight: str, rule: families.Rule) -> list[Piece]:
    """A weight's parts; of the first layer's, checks that they join to the weight."""
    tensor = source.weights[weight]
    bits = tensor.load()
    parts = [np.ascontiguousarray(part) for part in rule.split(bits)]
    if not weight.startswith(_LATER_LAYERS) and not same_bits(rule.join(parts), bits):
        raise CheckpointError(f"{tensor.place}: {', '.join(rule.names)} don't join to the weight again")
    return [piece_of(name, 0, part, tensor.dtype) for name, part in zip(rule.names, parts, strict=True)]


def _index(source: Source, files: dict[str, list[str]], architecture: str) -> dict:
    listed = {
        name: file
        for file, held in files.items()
        for weight in held
        for name in families.rule_for(weight, source.model, architecture).names
    }
    return {"metadata": {"total_size": source.num_bytes}, "weight_map": listed}


def _json(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
