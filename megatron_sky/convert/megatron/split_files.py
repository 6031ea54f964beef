"""Megatron-LM's older checkpoints: one `model_optim_rng.pt` per tensor- and pipeline-parallel rank.

    iter_0001000/mp_rank_00/model_optim_rng.pt         tensor-parallel rank 00
    iter_0001000/mp_rank_00_001/model_optim_rng.pt     tensor-parallel rank 00, pipeline stage 001

A file holds `args`, `checkpoint_version` and `model` (`model0`, `model1` ... with interleaved stages), beside optimizer
and random state, which are not read. Two spellings of the weights exist: megatron-core's flat one, and the nested one
of before (`language_model.encoder.layers.0.self_attention.query_key_value.weight`). Layers are numbered anew in every
stage. The split of each tensor is undone: rows side by side for the first linear of a pair and the embeddings, columns
for the second, and a gated fc1 half by half, since every rank holds a part of the gate and a part of the up projection.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor, same_numbers
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive, settings_of
from megatron_sky.convert.megatron.ranks import COLUMNS, is_whole
from megatron_sky.errors import CheckpointError
from megatron_sky.files import stays_inside

FILE = "model_optim_rng.pt"
_FOLDER = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")
_LONGEST_NAME = 1000  # of a tensor, with the tables that it stands in

# The nested spelling, piece by piece; the order matters where one pattern is part of another.
_RENAMED = [
    (r"^language_model\.", ""),
    (r"^(encoder|transformer)\.layers\.", "decoder.layers."),
    (r"^(encoder|transformer)\.final_(layer)?norm\.", "decoder.final_layernorm."),
    (r"\.(input_norm|input_layernorm)\.", ".self_attention.linear_qkv.layer_norm_"),
    (r"\.(post_attention_norm|post_attention_layernorm|pre_mlp_layernorm)\.", ".mlp.linear_fc1.layer_norm_"),
    (r"\.(self_)?attention\.query_key_value\.", ".self_attention.linear_qkv."),
    (r"\.(self_)?attention\.dense\.", ".self_attention.linear_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
    (r"^word_embeddings_for_head\.", "output_layer."),
]


@dataclass(frozen=True)
class SplitCheckpoint:
    """An opened folder: Megatron-LM's settings, and rank files by (tensor rank, pipeline stage)."""

    settings: dict | None
    ranks: dict[tuple[int, int], "RankFile"]

    @property
    def tp_size(self) -> int:
        return 1 + max(tp for tp, _ in self.ranks)

    @property
    def pp_size(self) -> int:
        return 1 + max(pp for _, pp in self.ranks)


@dataclass(frozen=True)
class RankFile:
    """One rank's file: its model chunks, each name -> tensor, in the order of the model's parameters."""

    path: Path
    chunks: list[dict[str, LazyTensor]]


def is_split(folder: Path) -> bool:
    """Whether `folder` holds mp_rank_XX folders."""
    return folder.is_dir() and any(_FOLDER.fullmatch(entry.name) for entry in folder.iterdir())


def open_split(folder: Path) -> SplitCheckpoint:
    """Opens every rank's file. Raises CheckpointError naming a rank whose file is missing or damaged."""
    paths = {}
    for entry in folder.iterdir():
        if match := _FOLDER.fullmatch(entry.name):
            paths[int(match[1]), int(match[2] or 0)] = entry / FILE
            if not stays_inside(entry / FILE, folder):
                raise CheckpointError(
                    f"{entry / FILE}: is a link that leads out of {folder}\n  fix: put the file itself there"
                )
    tp_size, pp_size = (1 + max(key[axis] for key in paths) for axis in (0, 1))
    if len(paths) != tp_size * pp_size:
        every = itertools.product(range(tp_size), range(pp_size))
        missing = itertools.islice((key for key in every if key not in paths), 5)
        raise CheckpointError(
            f"{folder}: has files of {tp_size:,} tensor-parallel ranks and {pp_size:,} pipeline stages, but none for "
            f"(tensor rank, stage) {', '.join(map(str, missing))}"
        )
    settings, ranks = None, {}
    for key, path in sorted(paths.items()):
        content, ranks[key] = _open_rank(path)
        settings = settings or settings_of(content)
    return SplitCheckpoint(settings, ranks)


def whole_tensors(checkpoint: SplitCheckpoint, *, gated: bool, tied: bool) -> tuple[dict[str, LazyTensor], list[str]]:
    """(canonical name -> whole tensor (`weights`), padding rows included; lines of warning).

    `gated`: fc1 is SwiGLU's gate and up. Raises CheckpointError where a tied model's last stage has another embedding.
    """
    tensors: dict[str, LazyTensor] = {}
    copies: list[LazyTensor] = []
    parted: list[str] = []
    first_layer = 0
    num_chunks = max(len(rank.chunks) for rank in checkpoint.ranks.values())
    for chunk in range(num_chunks):
        for stage in range(checkpoint.pp_size):
            parts = [checkpoint.ranks[tp, stage].chunks[chunk] for tp in range(checkpoint.tp_size)]
            joined = _join_ranks(parts, gated, [checkpoint.ranks[tp, stage].path for tp in range(checkpoint.tp_size)])
            parted += [name for name in joined if _differs(name, [part[name] for part in parts])]
            layers = {_layer_of(name) for name in joined} - {None}
            for name, tensor in joined.items():
                if tied and name == weights.OUTPUT_LAYER:
                    copies.append(tensor)  # the last stage's copy of the embedding
                else:
                    weights.put(tensors, _renumbered(name, first_layer), tensor)
            first_layer += len(layers)
    for copy in copies:
        if weights.WORD_EMBEDDING not in tensors or not same_numbers(tensors[weights.WORD_EMBEDDING], copy):
            raise CheckpointError(
                f"{copy.place}: is another tensor than the embedding, to which args ties it\n"
                "  fix: describe the model by --recipe FILE, with tie_embeddings: false, if the head is its own"
            )
    warnings = (
        f"{', '.join(parted[:5])}: differ between tensor-parallel ranks (in all {len(parted)} tensors): rank 0's taken"
    )
    return tensors, [warnings] if parted else []


def _differs(name: str, parts: list[LazyTensor]) -> bool:
    """Whether a tensor that all tensor-parallel ranks hold whole is not the same on all of them."""
    return is_whole(name) and not all(same_numbers(parts[0], part) for part in parts[1:])


def _open_rank(path: Path) -> tuple[dict, RankFile]:
    archive = TorchArchive(path)
    content = archive.content(tolerant=True)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no checkpoint of Megatron-LM: it holds no table")
    version = content.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or version < 2.0:
        raise CheckpointError(
            f"{path}: checkpoint_version = {version!r}: before 2.0 query, key and value lay in another order\n"
            "  fix: load and save it once with a Megatron-LM that upgrades it"
        )
    models = [content[key] for key in _chunk_keys(content)]
    if not models:
        raise CheckpointError(f"{path}: holds no model; it has {', '.join(map(str, content))}")
    return content, RankFile(path, [_tensors(archive, model) for model in models])


def _chunk_keys(content: dict) -> list[str]:
    if "model" in content:
        return ["model"]
    return sorted((k for k in content if re.fullmatch(r"model\d+", str(k))), key=lambda k: int(k.removeprefix("model")))


def _tensors(archive: TorchArchive, model: object) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for name, ref in _flat(model, archive.path):
        if not name.endswith(("_extra_state", "inv_freq")):
            weights.put(tensors, _canonical(name), archive.tensor(ref, name))
    return tensors


def _flat(model: object, path: Path) -> Iterator[tuple[str, TensorRef]]:
    """(dotted name, TensorRef) of every tensor in nested tables."""
    seen: set[int] = set()
    rest = [("", model)]
    while rest:
        prefix, node = rest.pop()
        if isinstance(node, TensorRef):
            yield prefix, node
        elif isinstance(node, dict):
            if id(node) in seen or len(prefix) > _LONGEST_NAME:
                raise CheckpointError(f"{path}: {prefix[:80]}: tables within tables without an end: is no model")
            seen.add(id(node))
            rest += [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in reversed(node.items())]


def _canonical(name: str) -> str:
    for pattern, spelling in _RENAMED:
        name = re.sub(pattern, spelling, name)
    return weights.canonical(name)


def _join_ranks(parts: list[dict[str, LazyTensor]], gated: bool, paths: list[Path]) -> dict[str, LazyTensor]:
    """Every tensor of one model chunk, from its tensor-parallel parts."""
    for part, path in zip(parts[1:], paths[1:], strict=True):
        if differing := sorted(part.keys() ^ parts[0].keys()):
            raise CheckpointError(f"{path}: holds other tensors than {paths[0]}: {', '.join(differing[:5])}")
    return {name: _join(name, [part[name] for part in parts], gated) for name in parts[0]}


def _join(name: str, parts: list[LazyTensor], gated: bool) -> LazyTensor:
    if len(parts) == 1 or is_whole(name):
        return parts[0]
    if name.endswith(COLUMNS):
        return parts[0].joined_with(parts[1:], 1)
    if gated and "mlp.linear_fc1." in name:
        halves = [part.rows(0, part.shape[0] // 2) for part in parts]
        halves += [part.rows(part.shape[0] // 2, part.shape[0]) for part in parts]
        return halves[0].joined_with(halves[1:], 0)
    return parts[0].joined_with(parts[1:], 0)


def _layer_of(name: str) -> int | None:
    match = re.match(r"decoder\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def _renumbered(name: str, first_layer: int) -> str:
    layer = _layer_of(name)
    if layer is None:
        return name
    prefix = f"{weights.LAYERS}{layer}."
    return f"{weights.LAYERS}{first_layer + layer}.{name.removeprefix(prefix)}"
