"""The optimizer's state in Megatron-LM's mp_rank files, where no distributed optimizer cut it.

    optimizer.state[i].exp_avg, exp_avg_sq                         by number, counted through the groups of parameters
    optimizer.param_groups[g].params                               the numbers of a group: with weight decay, without
    optimizer.optimizer, .fp32_from_fp16_params[g][i]              in bf16 and fp16: the same within it, and masters

The groups hold the parameters in the model's order, those without weight decay (biases, norms) in a group of their own.
"""

from megatron_sky.checkpoint.reader.lazy import LazyTensor
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.convert.training_state import EXP_AVG, EXP_AVG_SQ, KEYS, MASTER
from megatron_sky.errors import CheckpointError

Chunks = list[dict[str, LazyTensor]]


def rank_moments(archive: TorchArchive, state: dict, chunks: Chunks) -> list[dict[str, dict[str, LazyTensor]]]:
    """A rank's moments: of each model chunk, of each of KEYS, name -> tensor. `chunks`: its weights."""
    inner = state.get("optimizer", state)
    groups, entries = inner.get("param_groups"), inner.get("state")
    masters = state.get("fp32_from_fp16_params")
    if not isinstance(groups, list) or not isinstance(entries, dict):
        raise _unknown(archive, "has no param_groups and state")
    moments: list[dict[str, dict[str, LazyTensor]]] = [{key: {} for key in KEYS} for _ in chunks]
    rest = {decays: _names(chunks, decays) for decays in (True, False)}
    for number, group in enumerate(groups):
        decays = group.get("wd_mult", 1.0) != 0.0
        for place, index in enumerate(group.get("params", [])):
            if not rest[decays]:
                raise _unknown(archive, f"group {number} has more parameters than the model")
            chunk, name = rest[decays].pop(0)
            weight, entry = chunks[chunk][name], entries.get(index, {})
            for key in (EXP_AVG, EXP_AVG_SQ):
                moments[chunk][key][name] = _tensor(archive, entry.get(key), f"{key} of {name}", weight)
            if masters is None:
                moments[chunk][MASTER][name] = weight
            else:
                master = masters[number][place] if number < len(masters) and place < len(masters[number]) else None
                moments[chunk][MASTER][name] = _tensor(archive, master, f"master of {name}", weight)
    if left := [name for names in rest.values() for _, name in names]:
        raise _unknown(archive, f"has nothing for {', '.join(left[:5])}")
    return [
        {key: {name: held[key][name] for name in chunk} for key in KEYS}
        for held, chunk in zip(moments, chunks, strict=True)
    ]


def _names(chunks: Chunks, decays: bool) -> list[tuple[int, str]]:
    """(model chunk, name) of the parameters with weight decay, or without: biases and all that have one axis."""
    return [
        (number, name)
        for number, chunk in enumerate(chunks)
        for name, tensor in chunk.items()
        if decays == (len(tensor.shape) > 1 and not name.endswith(".bias"))
    ]


def _tensor(archive: TorchArchive, ref: object, name: str, weight: LazyTensor) -> LazyTensor:
    if not isinstance(ref, TensorRef) or ref.shape != weight.shape:
        shape = list(ref.shape) if isinstance(ref, TensorRef) else "nothing"
        raise _unknown(archive, f"{name} is {shape}, its weight's shape is {list(weight.shape)}")
    return archive.tensor(ref, name)


def _unknown(archive: TorchArchive, what: str) -> CheckpointError:
    return CheckpointError(
        f"{archive.path}: optimizer: {what}: is no AdamW of this model as Megatron-LM orders it\n"
        "  fix: have Megatron-LM save it once with --ckpt-format torch_dist"
    )
