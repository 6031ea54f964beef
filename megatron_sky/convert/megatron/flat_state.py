"""The distributed optimizer's flat buffers, as Megatron-LM saves them, cut back into each rank's parameters.

    optimizer.distributed.dp_group_idx_G.gbuf_idx_C.dtype_D.bucket_idx_B.exp_avg   `dp_reshardable`, before 0.14 called
                                                                 `fully_sharded_bucket_space`: a tensor for each bucket
    optimizer.distributed.dp_group_idx_G.param_state             `dp_zero_gather_scatter`: an object with a tensor for
                                                                 each model chunk
    mp_rank_00_001/distrib_optim.pt                              the same object, in the `torch` format

G counts the model-parallel ranks, tensor-parallel ones first; C is the model chunk. No parameter is named: where it
lies follows from the model, the layout and `buckets`. What contradicts that is refused, since it would be mixed up.
"""

import math
import re
from pathlib import Path

from megatron_sky.checkpoint.reader import torch_dist, weights
from megatron_sky.checkpoint.reader.index import METADATA, StoredTensor, read_index
from megatron_sky.checkpoint.reader.lazy import LazyTensor, in_file
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.megatron import buckets
from megatron_sky.convert.megatron.ranks import Layout, Shapes, chunk_shapes
from megatron_sky.convert.megatron.split_files import RankFile, SplitCheckpoint, whole_tensors
from megatron_sky.convert.training_state import KEYS
from megatron_sky.errors import CheckpointError

STATE_FILE = "distrib_optim.pt"
_GROUP = "optimizer.distributed.dp_group_idx_"
_BUCKET = re.compile(rf"{re.escape(_GROUP)}(\d+)\.gbuf_idx_(\d+)\.dtype_.+\.bucket_idx_(\d+)\.({'|'.join(KEYS)})")
RankMoments = dict[tuple[int, int], list[dict[str, dict[str, LazyTensor]]]]
"""(tensor rank, stage) -> for each model chunk: of each of KEYS, name -> tensor."""


def group_prefix(layout: Layout, tp_rank: int, stage: int) -> str:
    """What the keys of a model-parallel rank's distributed optimizer begin with."""
    return f"{_GROUP}{stage * layout.tp_size + tp_rank}."


def has_buckets(folder: Path) -> bool:
    """Whether a torch_dist folder holds a tensor for each bucket."""
    return any(_BUCKET.fullmatch(key) for key in read_index(folder / METADATA).tensors)


def read_buckets(folder: Path, model: ModelConfig, layout: Layout, rows: int) -> RankMoments:
    """The moments of every model-parallel rank, from a tensor for each bucket."""
    stored: dict[tuple[int, int, str], dict[int, StoredTensor]] = {}
    for key, tensor in read_index(folder / METADATA).tensors.items():
        if match := _BUCKET.fullmatch(key):
            group, chunk, bucket = (int(match[number]) for number in (1, 2, 3))
            stored.setdefault((group, chunk, match[4]), {})[bucket] = tensor
    moments: RankMoments = {}
    for tp_rank, stage in _ranks(layout):
        moments[tp_rank, stage] = []
        for chunk in range(layout.num_chunks):
            shapes = chunk_shapes(model, layout, stage=stage, chunk=chunk, rows=rows)
            group = stage * layout.tp_size + tp_rank
            held = {key: stored.get((group, chunk, key), {}) for key in KEYS}
            moments[tp_rank, stage].append({key: _of_buckets(folder, held[key], shapes) for key in KEYS})
    return moments


def _of_buckets(folder: Path, stored: dict[int, StoredTensor], shapes: Shapes) -> dict[str, LazyTensor]:
    by_number = [stored[number] for number in sorted(stored)]
    placed = buckets.place_in(_sizes(shapes), [tensor.shape[0] for tensor in by_number])
    if placed is None:
        raise _other_layout(folder, sum(tensor.shape[0] for tensor in by_number), shapes)
    lazy = {
        name: torch_dist.flat_slice(folder, tensor, start, shapes[name])
        for bucket, tensor in zip(placed, by_number, strict=True)
        for name, start in bucket.starts.items()
    }
    return {name: lazy[name] for name in shapes}


def read_objects(folder: Path, model: ModelConfig, layout: Layout, rows: int, settings: dict) -> RankMoments | None:
    """The moments of every model-parallel rank, from an object for each; None where the folder has none."""
    moments: RankMoments = {}
    for tp_rank, stage in _ranks(layout):
        archive = torch_dist.object_archive(folder, f"{group_prefix(layout, tp_rank, stage)}param_state")
        if archive is None:
            return None
        chunks = [chunk_shapes(model, layout, stage=stage, chunk=c, rows=rows) for c in range(layout.num_chunks)]
        moments[tp_rank, stage] = of_archive(archive, chunks, stage, settings, is_tied=model.tie_embeddings)
    return moments


def of_archive(
    archive: TorchArchive, chunks: list[Shapes], stage: int, settings: dict, *, is_tied: bool
) -> list[dict[str, dict[str, LazyTensor]]]:
    """A rank's moments from `save_parameter_state`'s object: of each model chunk, of each of KEYS, name -> tensor."""
    content = archive.content(tolerant=True)
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if not isinstance(content, dict) or not content.get("buckets_coalesced"):
        raise CheckpointError(
            f"{archive.path}: holds its optimizer in a form of before February 2024\n  fix: load and save it once with "
            "a later Megatron-LM and --ckpt-convert-update-legacy-dist-opt-format"
        )
    moments = []
    for chunk, shapes in enumerate(chunks):
        by_dtype = content.get(chunk)
        if not isinstance(by_dtype, dict) or len(by_dtype) != 1:
            raise CheckpointError(f"{archive.path}: model chunk {chunk} has no buffer, or several: not read here")
        (tensors,) = by_dtype.values()
        num_parameters = sum(_sizes(shapes).values())
        limit = buckets.bucket_size_of(settings, stage=stage, chunk=chunk, num_parameters=num_parameters)
        has_copy = is_tied and not {weights.WORD_EMBEDDING, weights.OUTPUT_LAYER}.isdisjoint(shapes)
        alone = (
            (weights.WORD_EMBEDDING, weights.OUTPUT_LAYER)
            if has_copy and (settings.get("pipeline_model_parallel_size") or 1) > 1
            else ()
        )
        placed = buckets.place(_sizes(shapes), bucket_size=limit, alone=alone)
        moments.append({key: _of_buffer(archive, tensors.get(key), key, placed, shapes) for key in KEYS})
    return moments


def _of_buffer(archive: TorchArchive, ref: object, key: str, placed: list[buckets.Bucket], shapes: Shapes) -> dict:
    """A model chunk's parameters in the flat tensor `ref`, in which bucket follows bucket without padding."""
    total = sum(bucket.size for bucket in placed)
    if not isinstance(ref, TensorRef) or ref.dtype != "F32" or not ref.is_contiguous or ref.shape != (total,):
        raise _other_layout(archive.path, ref.shape[0] if isinstance(ref, TensorRef) and ref.shape else 0, shapes)
    archive.tensor(ref, key)  # its bytes are all there
    lazy, first = {}, 0
    for bucket in placed:
        for name, start in bucket.starts.items():
            offset = archive.data_offset(ref) + 4 * (ref.storage_offset + first + start)
            lazy[name] = in_file(archive.path, offset, "F32", shapes[name], f"{key} of {name}")
        first += bucket.size
    return {name: lazy[name] for name in shapes}


def joined(
    moments: RankMoments, paths: dict[tuple[int, int], Path], *, gated: bool, tied: bool
) -> dict[str, dict[str, LazyTensor]]:
    """Of each of KEYS, the whole tensors by their weights' names."""
    whole = {}
    for key in KEYS:
        ranks = {rank: RankFile(paths[rank], [chunk[key] for chunk in chunks]) for rank, chunks in moments.items()}
        whole[key], _ = whole_tensors(SplitCheckpoint(None, ranks), gated=gated, tied=tied)
    return whole


def _ranks(layout: Layout) -> list[tuple[int, int]]:
    return [(tp_rank, stage) for stage in range(layout.pp_size) for tp_rank in range(layout.tp_size)]


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def _other_layout(where: Path, size: int, shapes: Shapes) -> CheckpointError:
    taken = sum(_sizes(shapes).values())
    return CheckpointError(
        f"{where}: a flat buffer of the optimizer has {size:,} elements, not what the {len(shapes)} parameters "
        f"of its rank ({taken:,} elements) take here: its version lays them out otherwise\n"
        "  fix: have Megatron-LM save it once with --ckpt-format torch_dist --dist-ckpt-optim-fully-reshardable"
    )
