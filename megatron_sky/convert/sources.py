"""Any checkpoint folder, opened for reading: its kind, the model it describes, and its weights, still on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_sky.checkpoint import description, store
from megatron_sky.checkpoint.reader import torch_dist, weights
from megatron_sky.checkpoint.reader.index import METADATA
from megatron_sky.checkpoint.reader.lazy import LazyTensor
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive, settings_of
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert import vocabulary
from megatron_sky.convert.huggingface import config as hf_config
from megatron_sky.convert.huggingface import families
from megatron_sky.convert.huggingface.safetensors_file import read_tensors
from megatron_sky.convert.megatron import args as megatron_args
from megatron_sky.convert.megatron import split_files
from megatron_sky.convert.model_section import build_model
from megatron_sky.errors import CheckpointError
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.kinds import find_in_hugging_face

log = get_logger(__name__)

NATIVE = "megatron_sky checkpoint"
MEGATRON_DIST = "Megatron-LM torch_dist folder"
MEGATRON_SPLIT = "Megatron-LM mp_rank folder"
HF = "Hugging Face folder"
_LATEST = "latest_checkpointed_iteration.txt"
# Where a Hugging Face folder's weights may lie, in the order in which transformers looks: a whole file, or an index.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. `weights` are just the model's, by the names of `weights.py`, without padding rows."""

    folder: Path
    kind: str
    model: ModelConfig
    weights: dict[str, LazyTensor]
    tokenizer: Path | None
    identity: str
    """Changes when the checkpoint's files do; tells whether an interrupted conversion can go on."""
    progress: dict
    """`step` and `consumed_tokens` of the run that made it, as far as it says."""
    architecture: str | None = None
    """Of a Hugging Face folder."""

    @property
    def adds_begin(self) -> bool:
        """Whether the begin token stood before each text in training, as its tokenizer's settings have it.

        Not where the model was trained here: there a document follows the end of the one before. Raises DataError.
        """
        untrained = self.kind != NATIVE or not self.progress.get("consumed_tokens")
        return untrained and self.tokenizer is not None and tokenizer_files.adds_begin(self.tokenizer)

    @property
    def dtype(self) -> str:
        """The number format of the embedding, as safetensors spells it."""
        return self.weights[weights.WORD_EMBEDDING].dtype

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.weights.values())


def open_source(
    path: Path, *, tokenizer: Path | None = None, vocab_size: int | None = None, recipe: Path | None = None
) -> Source:
    """Opens the checkpoint that `path` means: a folder of any kind, a run folder, or a Megatron-LM save folder.

    `tokenizer` and `vocab_size` settle the vocabulary where the checkpoint can't; `recipe` (a YAML file with a `model`
    section) describes the model where it doesn't. Raises CheckpointError naming what is missing or contradictory.
    """
    folder = resolve(path)
    kind = _kind(folder)
    given = _Given(None if tokenizer is None else tokenizer_files.file_of(tokenizer), vocab_size, recipe)
    opener = {NATIVE: _open_native, MEGATRON_DIST: _open_dist, MEGATRON_SPLIT: _open_split, HF: _open_hf}[kind]
    return opener(folder, given)


def resolve(path: Path) -> Path:
    """The checkpoint folder itself, where `path` may be the folder of a run, ours or Megatron-LM's."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: is no folder\n  fix: give a checkpoint folder")
    if checkpoints := store.list_checkpoints(path):
        return checkpoints[-1][1]
    latest = path / _LATEST
    if latest.is_file():
        name = latest.read_text(encoding="utf-8").strip()
        return path / (name if name == "release" else f"iter_{int(name):07d}" if name.isdigit() else name)
    return path


@dataclass(frozen=True)
class _Given:
    """What the user says beside the folder."""

    tokenizer: Path | None
    vocab_size: int | None
    recipe: Path | None

    def settled_vocab_size(self, folder: Path, rows: int, described: int | None, tokenizer: Path | None) -> int:
        size = vocabulary.tokenizer_size(tokenizer)
        return vocabulary.true_vocab_size(folder, rows=rows, described=described, tokenizer=size, flag=self.vocab_size)


def _kind(folder: Path) -> str:
    if (folder / METADATA).is_file():
        ours = any((folder / name).is_file() for name in (store.TRAIN_STATE, store.MANIFEST))
        return NATIVE if ours else MEGATRON_DIST
    if split_files.is_split(folder):
        return MEGATRON_SPLIT
    if (folder / hf_config.CONFIG).is_file():
        return HF
    raise CheckpointError(
        f"{folder}: is no checkpoint: it has neither {METADATA} (torch_dist) nor mp_rank folders "
        f"(Megatron-LM) nor {hf_config.CONFIG} (Hugging Face)"
    )


def _open_native(folder: Path, given: _Given) -> Source:
    store.check_sizes(folder)  # hashes would read the optimizer; each chunk read is checked by its own CRC-32
    saved = description.read_description(folder)
    stored = torch_dist.read_stored(folder)
    found = torch_dist.weight_tensors(folder, stored)
    tokenizer = given.tokenizer or tokenizer_files.find(folder)
    vocab = given.settled_vocab_size(folder, _rows(found, folder), saved.config.model.vocab_size, tokenizer)
    model = saved.config.model.model_copy(update={"vocab_size": vocab})
    return Source(
        folder,
        NATIVE,
        model,
        weights.settle(found, model, folder),
        tokenizer,
        _content_identity([folder / store.MANIFEST, folder / METADATA]),
        saved.progress,
    )


def _open_dist(folder: Path, given: _Given) -> Source:
    stored = torch_dist.read_stored(folder)
    found = torch_dist.weight_tensors(folder, stored)
    settings = _dist_settings(folder)
    model = _megatron_model(folder, settings, found, given)
    progress = {"consumed_samples": settings.get("consumed_train_samples")} if settings else {}
    return Source(
        folder,
        MEGATRON_DIST,
        model,
        weights.settle(found, model, folder),
        given.tokenizer,
        _identity([folder / METADATA]),
        progress,
    )


def _dist_settings(folder: Path) -> dict | None:
    """Megatron-LM's `args`: in common.pt, or since megatron-core 0.17 among the sharded objects."""
    common = folder / torch_dist.COMMON
    if common.is_file():
        return settings_of(TorchArchive(common).content(tolerant=True))
    held = torch_dist.read_object(folder, "common_state")
    return settings_of(held[0] if isinstance(held, list) and held else held)


def _open_split(folder: Path, given: _Given) -> Source:
    checkpoint = split_files.open_split(folder)
    fields = _megatron_fields(folder, checkpoint.settings, given)
    found = split_files.whole_tensors(checkpoint, gated=fields["activation"] == "swiglu", tied=fields["tie_embeddings"])
    model = _megatron_model(folder, checkpoint.settings, found, given)
    return Source(
        folder,
        MEGATRON_SPLIT,
        model,
        weights.settle(found, model, folder),
        given.tokenizer,
        _identity([rank.path for rank in checkpoint.ranks.values()]),
        {},
    )


def _megatron_fields(folder: Path, settings: dict | None, given: _Given) -> dict:
    """The model's fields, from --recipe where it is given, else from Megatron-LM's settings."""
    if given.recipe is not None:
        return _recipe_fields(given.recipe)
    if settings is None:
        raise CheckpointError(
            f"{folder}: holds no args that describe the model\n  fix: describe it with --recipe FILE, a YAML file "
            "with a model section"
        )
    return megatron_args.model_fields(settings, str(folder))


def _megatron_model(folder: Path, settings: dict | None, found: dict[str, LazyTensor], given: _Given) -> ModelConfig:
    fields = dict(_megatron_fields(folder, settings, given))
    described = fields.pop("vocab_size", None)
    vocab = given.settled_vocab_size(folder, _rows(found, folder), described, given.tokenizer)
    return build_model(fields | {"vocab_size": vocab}, folder)


def _recipe_fields(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ModelConfig(**content["model"]).model_dump()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no model section that can be read: {error}") from error


def _open_hf(folder: Path, given: _Given) -> Source:
    model, architecture = hf_config.read_config(folder)
    tensors = hf_tensors(folder, architecture)
    embedding = families.rule_for(weights.WORD_EMBEDDING, model, architecture).names[0]
    if embedding not in tensors:
        raise CheckpointError(f"{folder}: {embedding}: is missing")
    rows = tensors[embedding].shape[0]
    if rows != model.vocab_size:
        raise CheckpointError(
            f"{folder}: vocab_size = {model.vocab_size:,} in {hf_config.CONFIG}, but {embedding} has {rows:,} rows"
        )
    tokenizer = given.tokenizer or find_in_hugging_face(folder)
    _tell_of_lost_tokens(tokenizer)
    vocab = given.settled_vocab_size(folder, rows, model.vocab_size, tokenizer)
    model = model.model_copy(update={"vocab_size": vocab})
    found = _from_hf(tensors, model, architecture, folder, rows)
    return Source(
        folder,
        HF,
        model,
        weights.settle(found, model, folder),
        tokenizer,
        _identity(hf_files(folder)),
        {},
        architecture,
    )


def _tell_of_lost_tokens(tokenizer: Path | None) -> None:
    lost = vocabulary.tokens_beside(tokenizer)
    if lost:
        log.warning(
            "%s: lacks %d tokens that the settings beside it add, and no tokenizer.json holds them: texts that spell "
            "them are encoded as plain text\n  fix: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) "
            "of transformers writes one",
            tokenizer,
            lost,
        )


def hf_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder. Raises CheckpointError naming one that the index lists in vain."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: holds no weights: none of {', '.join(_WEIGHTS)}")
    return _indexed_files(path) if path.suffix == ".json" else [path]


def _indexed_files(index: Path) -> list[Path]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [index.parent / file for file in sorted(set(listed.values()))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: can't be read: {error}") from error
    if missing := [file for file in files if file.parent != index.parent or not file.is_file()]:
        raise CheckpointError(f"{missing[0]}: is missing: {index.name} lists it")
    return files


def hf_tensors(folder: Path, architecture: str) -> dict[str, LazyTensor]:
    """All tensors of a Hugging Face folder under the names of the whole model."""
    tensors = {name: tensor for file in hf_files(folder) for name, tensor in _file_tensors(file).items()}
    if architecture == families.GPT2 and not any(name.startswith("transformer.") for name in tensors):
        return {f"transformer.{name}": tensor for name, tensor in tensors.items()}  # GPT2Model, saved without its head
    return tensors


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


def _from_hf(
    tensors: dict[str, LazyTensor], model: ModelConfig, architecture: str, folder: Path, rows: int
) -> dict[str, LazyTensor]:
    """The weights under our names; a Hugging Face tensor that no rule takes keeps its name, to be told as unknown."""
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_derived(name, model)}
    whole = model.model_copy(update={"vocab_size": rows})
    found, wrong = {}, []
    for name in (name for unit in weights.units(model) for name in unit):
        rule = families.rule_for(name, whole, architecture)
        parts = [tensors.pop(each, None) for each in rule.names]
        for each, part, shape in zip(rule.names, parts, rule.shapes, strict=True):
            if part is None:
                wrong.append(f"  {each}: is missing")
            elif not part.is_weight:
                wrong.append(f"  {part.place}: {weights.no_weight(part)}")
            elif part.shape != shape:
                wrong.append(f"  {part.place}: has shape {list(part.shape)}, {hf_config.CONFIG} means {list(shape)}")
        if not wrong:
            found[name] = _joined(rule, parts)
    if wrong:
        head = f"{folder}: does not hold the weights of the model it describes:"
        raise CheckpointError("\n".join([head, *wrong[:20]]))
    return found | tensors


def _joined(rule: families.Rule, parts: list[LazyTensor]) -> LazyTensor:
    place = ", ".join(part.place for part in parts)
    if len({part.dtype for part in parts}) > 1:
        raise CheckpointError(f"{place}: have different number formats: {', '.join(part.dtype for part in parts)}")
    return LazyTensor(parts[0].dtype, rule.whole_shape, lambda: rule.join([part.load() for part in parts]), place)


def _is_derived(name: str, model: ModelConfig) -> bool:
    """Tensors that some folders carry and no model needs: constants, and the head's copy of a tied embedding."""
    if name.endswith(("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")):
        return True
    return name == "lm_head.weight" and model.tie_embeddings


def _rows(found: dict[str, LazyTensor], folder: Path) -> int:
    if weights.WORD_EMBEDDING not in found:
        raise CheckpointError(f"{folder}: holds no {weights.WORD_EMBEDDING}: it is no language model of megatron-core")
    return found[weights.WORD_EMBEDDING].shape[0]


def _content_identity(files: list[Path]) -> str:
    """Of files that hold the hashes of the others: the same wherever the folder is moved or copied to."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _identity(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        found = path.stat()
        digest.update(f"{path.resolve()} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
