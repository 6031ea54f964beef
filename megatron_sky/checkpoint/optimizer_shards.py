"""The distributed optimizer's state, from flat shards to whole parameters and back, each parameter by one rank alone.

With ZeRO-1 a data-parallel rank holds an equal stretch of each flat gradient bucket: parts of parameters, cut anywhere.
A checkpoint that any layout can load holds whole parameters (megatron-core's `fully_reshardable` form). megatron-core
makes them by gathering all buckets on every rank of the group, which for 13 B parameters on 256 data-parallel ranks and
two pipeline stages takes 80 GB of host memory a rank. Here every parameter has an owner among the ranks that hold a
part of it; the owner is sent the parts it lacks, and is alone to write it. What crosses a border between two ranks
travels, and nothing else; with one data-parallel rank nothing is even copied. Loading goes the same way back.

What is written is the same, name by name, so checkpoints are exchanged with megatron-core's own form freely. (Where a
bucket is padded, as with several buckets and ZeRO-1, its own gathering also misplaces what follows the padding.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from megatron_sky.checkpoint.reader.weights import MODEL_SPACE

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

KEYS = ("param", "exp_avg", "exp_avg_sq")
SHARDING_TYPE = "fully_reshardable"


@dataclass(frozen=True)
class _Piece:
    """A rank's part of a parameter: elements `start` to `end` of the flat parameter. `owner` writes the whole of it."""

    param: torch.nn.Parameter
    rank: int
    owner: int
    start: int
    end: int


def distributed_optimizer(optimizer: "MegatronOptimizer") -> "DistributedOptimizer | None":
    """The one DistributedOptimizer behind megatron-core's optimizer; None where there is none, or several."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    inner = getattr(optimizer, "chained_optimizers", [optimizer])
    return inner[0] if len(inner) == 1 and isinstance(inner[0], DistributedOptimizer) else None


def sharded_state(optimizer: "DistributedOptimizer", model_state: dict, *, loading: bool) -> dict:
    """What megatron-core is to save, or to fill, of a DistributedOptimizer.

    Args:
        optimizer: the DistributedOptimizer.
        model_state: the model's sharded state; its entries tell each parameter's name, place and shape.
        loading: the tensors are to be filled, so that none is exchanged.
    """
    if loading:
        optimizer.load_state_dict(optimizer.state_dict())  # makes moments that are not there yet
    state = optimizer.state_dict()
    described = _by_parameter(model_state)
    owned = _to_fill(optimizer) if loading else _collect(optimizer)
    state["param_state"] = {
        number: {key: _entry(described[param], key, tensors[key]) for key in KEYS}
        for number, (param, tensors) in enumerate(owned.items())
    }
    state["param_state_sharding_type"] = SHARDING_TYPE
    return state


@torch.no_grad()
def load_state(optimizer: "DistributedOptimizer", loaded: dict) -> None:
    """Fills the DistributedOptimizer from `sharded_state(..., loading=True)` once megatron-core has filled that."""
    rest = {name: value for name, value in loaded.items() if not name.startswith("param_state")}
    optimizer.load_state_dict(rest)
    params = [bucket_params for bucket in _buckets(optimizer) for bucket_params in _owned_params(optimizer, bucket)]
    whole = dict(zip(params, loaded["param_state"].values(), strict=True))
    for bucket in _buckets(optimizer):
        received = {key: _scatter(optimizer, bucket, {p: tensors[key] for p, tensors in whole.items()}) for key in KEYS}
        for piece in _of_rank(bucket, optimizer.data_parallel_group.rank()):
            tensors = {key: received[key][piece.param] for key in KEYS}
            own = _tensors(optimizer, piece.param)
            if all(own[key].data_ptr() == tensors[key].data_ptr() for key in KEYS):  # filled already
                continue
            optimizer._set_main_param_and_optimizer_states(piece.param, tensors)


def _buckets(optimizer) -> Iterator[list[_Piece]]:
    """Every bucket's pieces, of all ranks, in the order of the bucket; the same on each rank of the group."""
    world_size = optimizer.data_parallel_group.size()
    load = [0] * world_size  # elements that each rank owns so far
    for buffer, ranges in zip(optimizer.buffers, optimizer.gbuf_ranges, strict=True):
        (bucket_ranges,) = ranges.values()
        for bucket, local in zip(buffer.buckets, bucket_ranges, strict=True):
            shard = bucket.grad_data.numel() // world_size
            pieces = [
                piece
                for param, (start, end, number) in buffer.param_index_map.items()
                if number == bucket.bucket_id
                for piece in _cut(param, start - bucket.offset, end - bucket.offset, shard, load)
            ]
            pieces.sort(key=lambda piece: piece.rank)
            _check_ranges(pieces, local["param_map"], optimizer.data_parallel_group.rank())
            yield pieces


def _cut(param, start: int, end: int, shard: int, load: list[int]) -> list[_Piece]:
    """A parameter that lies at `start` to `end` of its bucket, cut where a rank's `shard` elements end. Of the ranks
    that hold a part, the one with the least to write becomes its owner."""
    holders = range(start // shard, (end - 1) // shard + 1)
    owner = min(holders, key=lambda rank: (load[rank], rank))
    load[owner] += end - start
    return [
        _Piece(param, rank, owner, max(start, rank * shard) - start, min(end, (rank + 1) * shard) - start)
        for rank in holders
    ]


def _check_ranges(pieces: list[_Piece], param_map: dict, rank: int) -> None:
    ours = {piece.param: (piece.start, piece.end) for piece in _of_rank(pieces, rank)}
    theirs = {param: (ranges["param"].start, ranges["param"].end) for param, ranges in param_map.items()}
    assert ours == theirs, "megatron-core cuts its buckets in another way than is known here"


def _of_rank(pieces: list[_Piece], rank: int) -> list[_Piece]:
    return [piece for piece in pieces if piece.rank == rank]


def _owned_params(optimizer, pieces: list[_Piece]) -> list:
    rank = optimizer.data_parallel_group.rank()
    return list(dict.fromkeys(piece.param for piece in pieces if piece.owner == rank))


def _to_fill(optimizer) -> dict:
    """Room for the parameters that this rank owns: parameter -> key -> fp32 tensor of its shape.

    On a CPU it is the optimizer's own memory where no other rank holds a part.
    """
    room = {}
    for pieces in _buckets(optimizer):
        shared = {piece.param for piece in pieces if piece.rank != piece.owner}
        for param in _owned_params(optimizer, pieces):
            if param in shared or param.device.type != "cpu":
                room[param] = {key: torch.empty(param.shape, dtype=torch.float32, device=param.device) for key in KEYS}
            else:
                room[param] = {key: tensor.view(param.shape) for key, tensor in _tensors(optimizer, param).items()}
    return room


def _collect(optimizer) -> dict:
    """The parameters that this rank owns, whole: parameter -> key -> tensor of its shape. Collective in the group."""
    rank, owned = optimizer.data_parallel_group.rank(), {}
    for pieces in _buckets(optimizer):
        held = {piece.param: _tensors(optimizer, piece.param) for piece in _of_rank(pieces, rank)}
        whole = {
            key: _gather(optimizer, pieces, {param: tensors[key] for param, tensors in held.items()}) for key in KEYS
        }
        for param in _owned_params(optimizer, pieces):
            owned[param] = {key: whole[key][param].view(param.shape) for key in KEYS}
    return owned


def _tensors(optimizer, param) -> dict:
    """This rank's flat part of a parameter's master weight and moments; before the first step the moments are zero."""
    group, place = optimizer.model_param_group_index_map[param]
    main = optimizer.optimizer.param_groups[group]["params"][place]
    if main not in optimizer.optimizer.state:  # asking for it would make an empty entry
        zeros = torch.zeros_like(main, dtype=torch.float32).detach()
        return {"param": main.detach(), "exp_avg": zeros, "exp_avg_sq": zeros}
    states = optimizer._get_main_param_and_optimizer_states(param)
    return {key: states[key].detach() for key in KEYS}


def _gather(optimizer, pieces: list[_Piece], held: dict) -> dict:
    """The owned parameters' flat tensors, made of this rank's own parts and those that the others send."""
    parts = _exchange(
        optimizer,
        pieces,
        lambda piece: held[piece.param].flatten(),
        source=lambda piece: piece.rank,
        to=lambda piece: piece.owner,
    )
    whole = {}
    for param in _owned_params(optimizer, pieces):
        own = [parts[piece] for piece in pieces if piece.param is param]  # in the order of the parameter
        whole[param] = torch.cat(own) if len(own) > 1 else own[0]
    return whole


def _scatter(optimizer, pieces: list[_Piece], whole: dict) -> dict:
    """This rank's parts of the bucket's parameters, from their owners: parameter -> flat tensor."""
    parts = _exchange(
        optimizer,
        pieces,
        lambda piece: whole[piece.param].flatten()[piece.start : piece.end],
        source=lambda piece: piece.owner,
        to=lambda piece: piece.rank,
    )
    return {piece.param: part for piece, part in parts.items()}


def _exchange(optimizer, pieces: list[_Piece], tensor_of: Callable, *, source: Callable, to: Callable) -> dict:
    """Moves each piece from rank `source(piece)`, which has it as `tensor_of(piece)`, to rank `to(piece)`.

    Returns the pieces that are this rank's then, its own untouched. Collective where any rank sends anything.
    """
    group, rank = optimizer.data_parallel_group, optimizer.data_parallel_group.rank()
    kept = {piece: tensor_of(piece) for piece in pieces if source(piece) == rank == to(piece)}
    moving = [piece for piece in pieces if source(piece) != to(piece)]  # the same on every rank
    if not moving:
        return kept
    outgoing = sorted((piece for piece in moving if source(piece) == rank), key=to)  # stable: the bucket's order
    incoming = sorted((piece for piece in moving if to(piece) == rank), key=source)
    device = optimizer.buffers[0].grad_data.device
    flat = [tensor_of(piece).to(torch.float32) for piece in outgoing]
    message = torch.cat(flat) if flat else torch.empty(0, dtype=torch.float32, device=device)
    sizes = [[0] * group.size(), [0] * group.size()]
    for piece in outgoing:
        sizes[0][to(piece)] += piece.end - piece.start
    for piece in incoming:
        sizes[1][source(piece)] += piece.end - piece.start
    answer = torch.empty(sum(sizes[1]), dtype=torch.float32, device=device)
    torch.distributed.all_to_all_single(answer, message, sizes[1], sizes[0], group=group)
    parts = answer.split([piece.end - piece.start for piece in incoming])
    return kept | dict(zip(incoming, parts, strict=True))


def _by_parameter(model_state: dict) -> dict:
    """parameter -> its ShardedTensor, or the factory that makes several of it."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    sharded, _ = extract_sharded_tensors_and_factories(model_state)
    return {entry.data: entry for entry in nested_values(sharded)}


def _entry(described, key: str, tensor: torch.Tensor):
    """The parameter's ShardedTensor with the optimizer's tensor in it; only its owner has it."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    changes: dict[str, object] = {
        "key": f"{MODEL_SPACE}{key}.{described.key}",
        "data": tensor,
        "replica_id": (*described.replica_id[:2], 0),
    }
    if isinstance(described, ShardedTensorFactory):
        changes["merge_fn"] = partial(_merged, described.merge_fn)
    else:
        changes["dtype"] = tensor.dtype
    return replace(described, **changes)


def _merged(merge: Callable, parts):
    """What `merge` makes of parts along their first axis; no copy where they lie side by side."""
    first = parts[0] if isinstance(parts, list | tuple) and all(torch.is_tensor(part) for part in parts) else None
    if first is None or not all(part.is_contiguous() for part in parts):
        return merge(parts)
    begins = [part.data_ptr() for part in parts]
    ends = [part.data_ptr() + part.nbytes for part in parts]
    is_one = len({part.untyped_storage().data_ptr() for part in parts}) == 1 and begins[1:] == ends[:-1]
    if not is_one or len({part.shape[1:] for part in parts}) > 1:
        return merge(parts)
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())
