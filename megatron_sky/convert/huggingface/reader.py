"""The weights of a Hugging Face folder, read lazily; nothing in its weight files goes unused in silence.

Files are looked for in transformers' order. Every tensor in them is then one of four: a weight that the model needs; a
copy of one, or a constant that the model makes itself, which is compared with what it repeats and named among what is
`left_out`; or else it keeps its name, and whoever takes the weights refuses it as no tensor of this model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32, common_format, of_runs, same_numbers
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.huggingface import families
from megatron_sky.convert.huggingface.config import CONFIG, GENERATION
from megatron_sky.convert.huggingface.safetensors_file import read_tensors
from megatron_sky.convert.json_object import read_object
from megatron_sky.errors import CheckpointError
from megatron_sky.files import lies_inside
from megatron_sky.tokenizer import files as tokenizer_files

# Where the weights may lie, in the order in which transformers looks: a whole file, or an index.
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Endings of files that may hold weights: which of them are not read is worth a warning.
_WEIGHT_ENDINGS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz", ".distcp"}
# Constants beside the weights, which older versions of transformers saved and newer ones pass over.
_INV_FREQ = re.compile(r"model\.(?:layers\.(\d+)\.self_attn\.)?rotary_emb\.inv_freq")
_MASK = re.compile(r"transformer\.h\.(\d+)\.attn\.(masked_)?bias")


@dataclass
class Opened:
    """Weights under our names, with what `validate_and_trim` is to refuse; notes on the rest of what the files hold."""

    files: str
    """The file that holds them, or the index of several."""
    weights: dict[str, LazyTensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Harmless: copies and constants, each compared with what it repeats."""
    warnings: list[str] = field(default_factory=list)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises CheckpointError naming one that the index lists in vain."""
    path = _first_file(folder)
    return sorted(set(_weight_map(path).values())) if path.suffix == ".json" else [path]


def unread_files(folder: Path, tokenizer: Path | None) -> tuple[list[str], list[str]]:
    """Names of what else lies in the folder and no conversion takes: (files that may hold weights, all others)."""
    used = {path.name for path in (_first_file(folder), *weight_files(folder))} | {CONFIG, GENERATION}
    if tokenizer is not None and tokenizer.parent == folder:
        used |= {path.name for path, _ in tokenizer_files.files_of(tokenizer, settings=True)}
    rest = [path for path in sorted(folder.iterdir()) if path.name not in used and not path.name.startswith(".")]
    weighty = [path.name for path in rest if path.suffix in _WEIGHT_ENDINGS or path.name.endswith(".index.json")]
    return weighty, [f"{path.name}/" if path.is_dir() else path.name for path in rest if path.name not in weighty]


def read_weights(folder: Path, model: ModelConfig, architecture: str) -> Opened:
    """The weights of the `model` that config.json describes.

    Raises CheckpointError naming every weight that is missing, or has another shape or no number format of weights; a
    head that is said to be the embedding and differs from it; an index that contradicts its files.
    """
    opened = Opened(_first_file(folder).name)
    tensors = _all_tensors(folder, architecture, opened)
    weights.check_num_layers(model, len(tensors), folder)
    wrong: list[str] = []
    mixed: list[str] = []
    for name in (name for unit in weights.units(model) for name in unit):
        rule = families.rule_for(name, model, architecture)
        tensors_of_rule = [tensors.pop(part, None) for part in rule.names]
        problems = [_problem(*part) for part in zip(rule.names, tensors_of_rule, rule.shapes, strict=True)]
        parts = [part for part in tensors_of_rule if part is not None]
        if any(problems):
            wrong += [problem for problem in problems if problem]
            continue
        mixed += [] if len({part.dtype for part in parts}) == 1 else rule.names
        opened.weights[name] = _joined(rule, parts, families.row_runs(name, model, architecture))
    if wrong:
        head = f"{folder}: does not hold the weights of the model it describes:"
        raise CheckpointError("\n".join([head, *wrong[:20]]))
    if mixed:
        opened.warnings.append(f"{listed(mixed)}: of several number formats: taken in one that holds all their numbers")
    _pass_over_copies(folder, tensors, model, architecture, opened)
    opened.weights |= tensors
    return opened


def listed(names: Iterable[str]) -> str:
    """Names of tensors in a line, those of many layers as one."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"\.\d+\.", ".*.", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(pattern if count == 1 else f"{pattern} ({count})" for pattern, count in counts.items())


def _first_file(folder: Path) -> Path:
    if adapters := [name for name in _ADAPTERS if (folder / name).exists()]:
        raise CheckpointError(
            f"{folder}: {', '.join(adapters)}: an adapter beside the weights, which transformers would add to them\n"
            "  fix: merge it (peft: model.merge_and_unload().save_pretrained(FOLDER)), or move it away"
        )
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: holds no weights: none of {', '.join(_FILES)}")
    return path


def _weight_map(index: Path) -> dict[str, Path]:
    """Tensor -> file, as an index has it; the files are there, in its own folder."""
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise CheckpointError(f"{index}: can't be read: it has no weight_map of tensors and files")
    for file in sorted(set(named.values())):
        if not lies_inside(file) or Path(file).name != file:
            raise CheckpointError(f"{index}: names the file {file!r}, which lies outside the folder")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index.parent / file}: is missing: {index.name} lists it")
    return {name: index.parent / file for name, file in named.items()}


def _all_tensors(folder: Path, architecture: str, opened: Opened) -> dict[str, LazyTensor]:
    """Every tensor of the folder's weight files, under the names of the whole model."""
    first = _first_file(folder)
    named = _weight_map(first) if first.suffix == ".json" else {}
    files = sorted(set(named.values())) or [first]
    held: dict[str, dict[Path, LazyTensor]] = {}
    for file in files:
        for name, tensor in _file_tensors(file).items():
            held.setdefault(name, {})[file] = tensor
    if absent := [name for name, file in named.items() if file not in held.get(name, {})]:
        raise CheckpointError(
            f"{first}: says that {absent[0]} lies in {named[absent[0]].name}, which does not hold it (in all "
            f"{len(absent)} such tensors)\n  fix: fetch or save the folder again"
        )
    if named and (beside := [name for name in held if name not in named]):
        opened.warnings.append(f"{listed(beside)}: {first.name} does not list them: read, as transformers reads them")
    tensors = {name: _one_of(name, copies, named.get(name), opened) for name, copies in held.items()}
    if architecture == families.GPT2 and not any(name.startswith("transformer.") for name in tensors):
        head = {name: tensors.pop(name) for name in ("lm_head.weight",) if name in tensors}
        return {f"transformer.{name}": tensor for name, tensor in tensors.items()} | head  # saved without its head
    return tensors


def _one_of(name: str, copies: dict[Path, LazyTensor], named: Path | None, opened: Opened) -> LazyTensor:
    """The tensor that several files may hold, if they hold the same."""
    file = named or next(iter(copies))
    for other, copy in copies.items():
        if other == file:
            continue
        if not same_numbers(copies[file], copy):
            raise CheckpointError(
                f"{file.parent}: {name} lies in {file.name} and in {other.name}, and they differ\n"
                "  fix: fetch or save the folder again"
            )
        opened.left_out.append(f"{name} in {other.name}: left out: the same as in {file.name}")
    return copies[file]


def _file_tensors(path: Path) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    archive = TorchArchive(path)
    content = archive.content()
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no table of tensors")
    if strange := [str(name) for name, ref in content.items() if not isinstance(ref, TensorRef)]:
        raise CheckpointError(f"{path}: {', '.join(strange[:5])}: is no tensor; a table of tensors alone is read")
    return {str(name): archive.tensor(ref, str(name)) for name, ref in content.items()}


def _problem(name: str, part: LazyTensor | None, shape: tuple[int, ...]) -> str:
    if part is None:
        return f"  {name}: is missing"
    if not part.is_weight:
        return f"  {part.place}: {weights.no_weight(part)}"
    if part.shape != shape:
        return f"  {part.place}: has shape {list(part.shape)}, {CONFIG} means {list(shape)}"
    return ""


def _joined(rule: families.Rule, parts: list[LazyTensor], runs: list[tuple[int, int, int]]) -> LazyTensor:
    """The weight; of whole rows of its parts where it has `runs` (`families.row_runs`), which are read into place."""
    dtype = common_format(part.dtype for part in parts)
    wide = [part.widened(dtype) for part in parts]
    place = ", ".join(part.place for part in parts)
    if runs and all(part.fill is not None for part in wide):
        return of_runs(wide, runs, rule.whole_shape, place)
    return LazyTensor(dtype, rule.whole_shape, lambda: rule.join([part.load() for part in wide]), place)


def _pass_over_copies(
    folder: Path, tensors: dict[str, LazyTensor], model: ModelConfig, architecture: str, opened: Opened
) -> None:
    """Takes out of `tensors`, which no rule has used, what repeats a weight or is a constant."""
    if model.tie_embeddings and "lm_head.weight" in tensors:
        if not same_numbers(opened.weights[weights.WORD_EMBEDDING], tensors.pop("lm_head.weight")):
            raise CheckpointError(
                f"{folder / CONFIG}: tie_word_embeddings = true, but lm_head.weight is not the embedding\n"
                "  fix: set it to false if the head is the model's own (transformers 5 takes it so); remove "
                "lm_head.weight from the weights if the head is the embedding (transformers 4 took it so)"
            )
        opened.left_out.append("lm_head.weight: left out: the same as the embedding, to which it is tied")
    constants = [name for name, tensor in tensors.items() if _is_constant(name, tensor, model, architecture)]
    if constants:
        opened.left_out.append(f"{listed(constants)}: left out: constants that the model makes itself")
    for name in constants:
        if name.endswith("inv_freq") and not _is_inv_freq(tensors[name], model):
            opened.warnings.append(f"{name}: other frequencies than {CONFIG} gives: left out, as transformers does")
        del tensors[name]


def _is_constant(name: str, tensor: LazyTensor, model: ModelConfig, architecture: str) -> bool:
    """Whether it is a buffer of one of the model's layers. Raises CheckpointError for a mask that is not causal."""
    match = (_MASK if architecture == families.GPT2 else _INV_FREQ).fullmatch(name)
    if match is None or (match[1] is not None and int(match[1]) >= model.num_layers):
        return False
    if architecture == families.GPT2 and match[2] is None:
        mask = tensor.load()
        if mask.ndim != 4 or not np.array_equal(
            mask.reshape(mask.shape[-2:]) != 0, np.tri(*mask.shape[-2:], dtype=bool)
        ):
            raise CheckpointError(f"{tensor.place}: is no causal mask; attention by another one isn't supported")
    return True


def _is_inv_freq(tensor: LazyTensor, model: ModelConfig) -> bool:
    """Whether a rotary embedding's frequencies are those of the model, to the precision of 16-bit numbers."""
    d = model.head_size
    expected = model.rotary_base ** (-np.arange(0, d, 2) / d)
    if not tensor.is_weight or tensor.shape != expected.shape:
        return False
    values = as_float32(tensor.load(), tensor.dtype)
    scales = [1.0] if model.rope_scaling is None else [1.0, model.rope_scaling.factor]
    return any(np.allclose(values * scale, expected, rtol=1e-2, atol=1e-7) for scale in scales)
