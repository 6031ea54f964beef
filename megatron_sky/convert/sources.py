"""Any checkpoint folder, opened for reading: its kind, the model it describes, and its weights, still on disk."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from megatron_sky.checkpoint import description, store
from megatron_sky.checkpoint.reader import index, torch_dist, weights
from megatron_sky.checkpoint.reader.index import METADATA
from megatron_sky.checkpoint.reader.lazy import LazyTensor
from megatron_sky.checkpoint.reader.torch_files import TorchArchive, settings_of
from megatron_sky.config import strict_yaml
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert import adapters, vocabulary
from megatron_sky.convert.huggingface import config as hf_config
from megatron_sky.convert.huggingface import reader as hf_reader
from megatron_sky.convert.megatron import args as megatron_args
from megatron_sky.convert.megatron import split_files
from megatron_sky.convert.model_section import build_model
from megatron_sky.errors import CheckpointError
from megatron_sky.files import read_bytes, read_text, real_path
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.kinds import find_in_hugging_face

NATIVE = "megatron_sky checkpoint"
MEGATRON_DIST = "Megatron-LM torch_dist folder"
MEGATRON_SPLIT = "Megatron-LM mp_rank folder"
HF = "Hugging Face folder"
LATEST = "latest_checkpointed_iteration.txt"


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
    hugging_face: hf_config.Settings | None = None
    """What such a folder says beside the weights: its own, or the one's that a native checkpoint came from."""
    left_out: tuple[str, ...] = ()
    """A line for each kind of thing that is not taken and need not be: copies, constants, padding rows, other files."""
    warnings: tuple[str, ...] = ()
    """A line for each thing that a user might miss or did not mean."""

    @property
    def adds_begin(self) -> bool:
        """Whether the begin token stood before each text in training, as its tokenizer's settings have it.

        Not where the model was trained here: there a document follows the end of the one before. Raises DataError.
        """
        untrained = self.kind != NATIVE or not self.progress.get("consumed_tokens")
        return untrained and self.tokenizer is not None and tokenizer_files.adds_begin(self.tokenizer)

    @property
    def dtype(self) -> str:
        """The number format that most of the weights' bytes are in, as safetensors spells it."""
        return self.formats.most_common(1)[0][0]

    @property
    def formats(self) -> Counter[str]:
        """Number format -> bytes of weights in it."""
        counts: Counter[str] = Counter()
        for tensor in self.weights.values():
            counts[tensor.dtype] += tensor.num_bytes
        return counts

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.weights.values())


def open_source(
    path: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    recipe: Path | None = None,
    base: Path | None = None,
) -> Source:
    """Opens the checkpoint that `path` means: a folder of any kind, a run folder, or a Megatron-LM save folder.

    `tokenizer` and `vocab_size` settle the vocabulary where the checkpoint can't; `recipe` (a YAML file with a `model`
    section) describes the model where it doesn't. Adapters are merged into the model beneath, which lies in `base`
    where it was moved. Raises CheckpointError naming what is missing or contradictory.
    """
    folder = resolve(path)
    kind = _kind(folder)
    given = Overrides(None if tokenizer is None else tokenizer_files.file_of(tokenizer), vocab_size, recipe, base)
    openers: dict[str, Callable[[Path, Overrides], Source]] = {
        NATIVE: _open_native,
        MEGATRON_DIST: _open_dist,
        MEGATRON_SPLIT: _open_split,
        HF: _open_hf,
    }
    return openers[kind](folder, given)


def resolve(path: Path) -> Path:
    """The checkpoint folder itself, where `path` may be the folder of a run, ours or Megatron-LM's."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: is no folder\n  fix: give a checkpoint folder")
    if checkpoints := store.list_checkpoints(path):
        return checkpoints[-1][1]
    latest = path / LATEST
    return path / _iteration_folder(latest) if latest.is_file() else path


def _iteration_folder(latest: Path) -> str:
    """The name of the folder that Megatron-LM's note of its latest checkpoint means."""
    try:
        name = read_text(latest).strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{latest}: can't be read: {error}") from error
    if name != "release" and not re.fullmatch(r"[0-9]{1,18}", name):
        raise CheckpointError(f"{latest}: {name[:40]!r}: is neither an iteration's number nor `release`")
    return name if name == "release" else f"iter_{int(name):07d}"


@dataclass(frozen=True)
class Overrides:
    """What the user says beside the folder."""

    tokenizer: Path | None
    vocab_size: int | None
    recipe: Path | None
    base: Path | None = None


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


def _open_native(folder: Path, given: Overrides) -> Source:
    store.check_sizes(folder)  # hashes would read the optimizer; each chunk read is checked by its own CRC-32
    saved = description.read_description(folder)
    files, kept = [folder / store.MANIFEST, folder / METADATA], folder / hf_config.KEPT
    if saved.adapter is None:
        weights = torch_dist.weight_tensors(folder, torch_dist.read_stored(folder))
    else:
        model_folder = adapters.beneath(saved, given.base)
        files += [model_folder / store.MANIFEST, model_folder / METADATA]
        kept = model_folder / hf_config.KEPT
        base = torch_dist.weight_tensors(model_folder, torch_dist.read_stored(model_folder))
        weights = adapters.merged(saved, base)
    tokenizer = given.tokenizer or tokenizer_files.find(folder)
    source = Source(
        folder,
        NATIVE,
        saved.config.model,
        weights,
        tokenizer,
        _content_identity(files),
        saved.progress,
        hugging_face=hf_config.read_settings(kept) if kept.is_dir() else None,
    )
    return _with_true_vocabulary(source, saved.config.model.vocab_size, given)


def _open_dist(folder: Path, given: Overrides) -> Source:
    weights = torch_dist.weight_tensors(folder, torch_dist.read_stored(folder))
    settings = _dist_settings(folder)
    fields, described = _megatron_fields(folder, settings, given)
    model = build_model(fields | {"vocab_size": _rows(weights, folder)}, folder)
    progress = {"consumed_samples": settings.get("consumed_train_samples")} if settings else {}
    source = Source(folder, MEGATRON_DIST, model, weights, given.tokenizer, _identity([folder / METADATA]), progress)
    return _with_true_vocabulary(source, described, given)


def _dist_settings(folder: Path) -> dict | None:
    """Megatron-LM's `args`: in common.pt, or since megatron-core 0.17 among the sharded objects."""
    common = folder / torch_dist.COMMON
    if common.is_file():
        return settings_of(TorchArchive(common).content(tolerant=True))
    held = torch_dist.read_object(folder, "common_state")
    return settings_of(held[0] if isinstance(held, list) and held else held)


def _open_split(folder: Path, given: Overrides) -> Source:
    checkpoint = split_files.open_split(folder)
    fields, described = _megatron_fields(folder, checkpoint.settings, given)
    weights, warnings = split_files.whole_tensors(
        checkpoint, gated=fields["activation"] == "swiglu", tied=fields["tie_embeddings"]
    )
    model = build_model(fields | {"vocab_size": _rows(weights, folder)}, folder)
    identity = _identity([rank.path for rank in checkpoint.ranks.values()])
    source = Source(folder, MEGATRON_SPLIT, model, weights, given.tokenizer, identity, {}, warnings=tuple(warnings))
    return _with_true_vocabulary(source, described, given)


def _with_true_vocabulary(source: Source, described: int | None, given: Overrides) -> Source:
    """The source with its vocabulary without padding rows, and exactly its model's weights. Raises CheckpointError."""
    rows = _rows(source.weights, source.folder)
    tokens = vocabulary.tokenizer_size(source.tokenizer)
    size = vocabulary.true_vocab_size(
        source.folder, rows=rows, described=described, tokenizer=tokens, flag=given.vocab_size
    )
    model = source.model.model_copy(update={"vocab_size": size})
    padding = (
        [f"{rows - size:,} rows of the embedding beyond its {size:,} tokens: padding, left out"] if rows > size else []
    )
    warnings = []
    if tokens is not None and tokens > size:
        warnings.append(f"{source.tokenizer}: {tokens - size:,} of its tokens have no row in the embedding")
    return replace(
        source,
        model=model,
        weights=weights.validate_and_trim(source.weights, model, source.folder),
        left_out=(*source.left_out, *padding),
        warnings=(*source.warnings, *warnings),
    )


def _megatron_fields(folder: Path, settings: dict | None, given: Overrides) -> tuple[dict, int | None]:
    """(the model's fields but vocab_size, that one if it is said), from --recipe, else from Megatron-LM's args."""
    if given.recipe is not None:
        fields = _recipe_fields(given.recipe)
        return {name: value for name, value in fields.items() if name != "vocab_size"}, fields["vocab_size"]
    if settings is None:
        raise CheckpointError(
            f"{folder}: holds no args that describe the model\n  fix: describe it with --recipe FILE, a YAML file "
            "with a model section"
        )
    return megatron_args.model_fields(settings, str(folder)), None


def _recipe_fields(path: Path) -> dict:
    try:
        content = strict_yaml.load(read_text(path), str(path))
        section = content["model"] if isinstance(content, dict) else content
        return ModelConfig.model_validate(section).model_dump()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no model section that can be read: {error}") from error


def _open_hf(folder: Path, given: Overrides) -> Source:
    settings = hf_config.read_settings(folder)
    model, architecture = hf_config.describe_model(settings, folder)
    opened = hf_reader.read_weights(folder, model, architecture)
    tokenizer = given.tokenizer or find_in_hugging_face(folder)
    weighty, others = hf_reader.unread_files(folder, tokenizer)
    warnings = [*opened.warnings, *_lost_tokens(tokenizer)]
    if weighty:
        warnings.append(f"{', '.join(weighty)}: not read: the weights are those of {opened.files}")
    left_out = [*opened.left_out, *([f"{', '.join(others)}: not carried over"] if others else [])]
    source = Source(
        folder,
        HF,
        model,
        opened.weights,
        tokenizer,
        _identity(hf_reader.weight_files(folder)),
        {},
        architecture,
        settings,
        tuple(left_out),
        tuple(warnings),
    )
    return _with_true_vocabulary(source, model.vocab_size, given)


def _lost_tokens(tokenizer: Path | None) -> list[str]:
    lost = vocabulary.tokens_beside(tokenizer)
    if not lost:
        return []
    return [
        f"{tokenizer}: lacks {lost} tokens that the settings beside it add, and no tokenizer.json holds them: texts "
        "that spell them are encoded as plain text\n  fix: AutoTokenizer.from_pretrained(FOLDER)"
        ".save_pretrained(FOLDER) of transformers writes one"
    ]


def _rows(tensors: dict[str, LazyTensor], folder: Path) -> int:
    if weights.WORD_EMBEDDING not in tensors:
        raise CheckpointError(f"{folder}: holds no {weights.WORD_EMBEDDING}: it is no language model of megatron-core")
    return tensors[weights.WORD_EMBEDDING].shape[0]


def _content_identity(files: list[Path]) -> str:
    """Of files that hold the hashes of the others: the same wherever the folder is moved or copied to."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(read_bytes(path, index.MAX_BYTES))
    return digest.hexdigest()


def _identity(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{real_path(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
