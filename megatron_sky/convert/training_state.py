"""What a run needs beside its model to go on: fp32 masters, AdamW's moments, its step, and how far it has come.

Whichever program saved them and however it cut them, they are whole tensors here under the names of their weights,
still on disk, with the vocabulary's padding rows: those are trained on as well.
"""

from dataclasses import dataclass, field
from pathlib import Path

from megatron_sky.checkpoint import description, store
from megatron_sky.checkpoint.reader import torch_dist
from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.checkpoint.reader.weights import MODEL_SPACE
from megatron_sky.config import Config
from megatron_sky.errors import CheckpointError

MASTER, EXP_AVG, EXP_AVG_SQ = KEYS = ("param", "exp_avg", "exp_avg_sq")
"""As megatron-core names them: the fp32 weights and AdamW's two moments."""
_UNSHARDED_MASTER = "fp32_param"


@dataclass(frozen=True)
class TrainingState:
    """`weights`: by name, padding rows included. `moments`: of each of KEYS, by the weights' names, in fp32.

    `is_sharded`: they were a distributed optimizer's. `optimizer_step`: updates that AdamW has done. `loss_scale`:
    megatron-core's dynamic one, of fp16.
    """

    weights: dict[str, LazyTensor]
    moments: dict[str, dict[str, LazyTensor]]
    is_sharded: bool
    optimizer_step: int
    step: int
    consumed_samples: int
    seq_length: int
    vocab_multiple: int | None = None
    """What the rows of the embedding are a multiple of, where that is said."""
    loss_scale: dict[str, float | int] | None = None
    recipe: dict = field(default_factory=dict)
    """Sections of the recipe that another program's checkpoint tells: schedule, optimizer, batch."""
    order: dict = field(default_factory=dict)
    """The order of samples, as `data.sampling` notes it in a checkpoint, as far as it is known."""
    warnings: tuple[str, ...] = ()

    @property
    def consumed_tokens(self) -> int:
        return self.consumed_samples * self.seq_length

    @property
    def rows(self) -> int:
        """Of the embedding, padding included."""
        return self.weights["embedding.word_embeddings.weight"].shape[0]


def optimizer_tensors(training: TrainingState, dtype: str) -> dict[str, dict[str, LazyTensor]]:
    """By a weight's name, what a torch_dist folder holds of its optimizer: key -> tensor. `dtype`: the model's.

    As megatron-core's optimizers save them: the distributed one its masters always, the others where the weights are
    not fp32 themselves.
    """
    keys = {EXP_AVG: EXP_AVG, EXP_AVG_SQ: EXP_AVG_SQ}
    if training.is_sharded:
        keys[MASTER] = MASTER
    elif dtype != "F32":
        keys[_UNSHARDED_MASTER] = MASTER
    return {
        name: {f"{MODEL_SPACE}{stored}.{name}": training.moments[key][name] for stored, key in keys.items()}
        for name in training.weights
    }


def optimizer_common(
    training: TrainingState, dtype: str, recipe: Config | None = None, *, is_torchs: bool = False
) -> dict:
    """What megatron-core's optimizer keeps in the common state: groups of parameters, their step, the loss scale.

    `recipe`: whose numbers stand in the groups; None: zeros, where each step sets them anew. `is_torchs`: for torch's
    AdamW, which keeps its step in its state, where Transformer Engine's and ours have it in the groups.
    """
    groups = [_group(decay, training.optimizer_step, recipe) for decay in (1.0, 0.0)]
    scale = {} if training.loss_scale is None else {"grad_scaler": _scaler(training.loss_scale)}
    if training.is_sharded:
        return {"optimizer": {"param_groups": groups}, "param_state_sharding_type": "fully_reshardable"} | scale
    inner: dict = {"state": {}, "param_groups": groups}
    if is_torchs:
        import torch

        inner["state"] = {"common_step": torch.tensor(float(training.optimizer_step))}
    if dtype == "F32":
        return inner
    return {"optimizer": inner} | scale


def _group(decay: float, step: int, recipe: Config | None) -> dict:
    """One of the two groups of parameters: with weight decay, and without it."""
    numbers: dict[str, object] = {"lr": 0.0, "weight_decay": 0.0}
    if recipe is not None:
        optimizer = recipe.optimizer
        numbers = {
            "lr": recipe.schedule.lr,
            "max_lr": recipe.schedule.lr,
            "min_lr": recipe.schedule.min_lr,
            "weight_decay": optimizer.weight_decay * decay,
            "betas": (optimizer.adam_beta1, optimizer.adam_beta2),
            "eps": optimizer.adam_eps,
        }
    return numbers | {
        "is_expert_parallel": False,
        "default_config": True,
        "wd_mult": decay,
        "lr_mult": 1.0,
        "is_decoupled_lr": False,
        "bias_correction": True,
        "step": step,
    }


def _scaler(numbers: dict[str, float | int]) -> dict:
    import torch

    return {name: torch.tensor([value]) if name == "scale" else value for name, value in numbers.items()}


def checked_moments(
    weights: dict[str, LazyTensor], moments: dict[str, dict[str, LazyTensor]], where: Path
) -> dict[str, dict[str, LazyTensor]]:
    """`moments` in fp32, each of its weight's shape. Raises CheckpointError naming all that are missing or other."""
    wrong = []
    for key, tensors in moments.items():
        for name in weights.keys() | tensors.keys():
            tensor, weight = tensors.get(name), weights.get(name)
            if tensor is None:
                wrong.append(f"{key} of {name}: is missing")
            elif weight is None:
                wrong.append(f"{tensor.place}: belongs to no weight of this model")
            elif tensor.shape != weight.shape:
                wrong.append(f"{tensor.place}: has shape {list(tensor.shape)}, its weight's is {list(weight.shape)}")
            elif tensor.dtype not in ("F32", "BF16", "F16"):
                wrong.append(f"{tensor.place}: has dtype {tensor.dtype}; masters and moments are F32, BF16 or F16")
    if wrong:
        listed = "\n".join(f"  {line}" for line in sorted(wrong)[:20])
        raise CheckpointError(
            f"{where}: its optimizer does not hold what AdamW keeps of this model ({len(wrong)} tensors):\n{listed}\n"
            "  fix: convert without --with-optimizer, and give the new run a short warm-up"
        )
    return {key: {name: tensors[name].widened("F32") for name in weights} for key, tensors in moments.items()}


def stored_moments(folder: Path, weights: dict[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]] | None:
    """The moments that a torch_dist folder holds under its weights' names; None where it holds none there.

    Masters are the weights where the optimizer kept none, as in fp32 without a distributed optimizer.
    """
    moments = {
        key: torch_dist.weight_tensors(folder, torch_dist.read_stored(folder, f"{MODEL_SPACE}{key}."))
        for key in (*KEYS, _UNSHARDED_MASTER)
    }
    other_masters = moments.pop(_UNSHARDED_MASTER)
    if not any(moments.values()) and not other_masters:
        return None
    moments[MASTER] = moments[MASTER] or other_masters
    if not moments[MASTER] and all(weight.dtype == "F32" for weight in weights.values()):
        moments[MASTER] = weights
    return moments


def number_in(archive: TorchArchive, value: object) -> int | float | None:
    """A number that was saved as it is or as a tensor; None where `value` is neither."""
    if isinstance(value, TensorRef) and value.num_needed == 1:
        tensor = archive.tensor(value, "a number")
        bits = tensor.load().reshape(-1)
        return float(as_float32(bits, tensor.dtype)[0]) if tensor.is_weight else int(bits.view(f"i{bits.itemsize}")[0])
    return value if isinstance(value, int | float) else None


def native_training(folder: Path) -> tuple[TrainingState, Config]:
    """The state in a checkpoint of ours, and its recipe. Raises CheckpointError where it has none, or is damaged."""
    store.verify(folder)  # all of it is read, and the optimizer's chunks have no CRC-32 of their own
    saved = description.read_description(folder)
    archive = TorchArchive(folder / torch_dist.COMMON)
    common = archive.content(tolerant=True)
    weights = torch_dist.weight_tensors(folder, torch_dist.read_stored(folder))
    moments = stored_moments(folder, weights)
    if moments is None or not isinstance(common, dict):
        raise CheckpointError(
            f"{folder}: was saved without its optimizer\n  fix: convert it with --no-optimizer, which hands over the "
            "weights alone"
        )
    progress = saved.progress
    groups, scaler = optimizer_parts(common.get("optimizer"))
    return TrainingState(
        weights,
        checked_moments(weights, moments, folder),
        saved.config.parallel.distributed_optimizer,
        step_of(archive, common.get("optimizer"), groups) or progress["step"],
        progress["step"],
        progress["consumed_samples"],
        saved.config.model.seq_length,
        loss_scale=loss_scale_of(archive, scaler),
    ), saved.config


def optimizer_parts(state: object) -> tuple[list[dict], object]:
    """(the parameter groups, the loss scale) in an optimizer's state, whichever of megatron-core's wrote it."""
    if not isinstance(state, dict):
        return [], None
    inner = state.get("optimizer", state)
    groups = inner.get("param_groups", []) if isinstance(inner, dict) else []
    return [group for group in groups if isinstance(group, dict)], state.get("grad_scaler")


def step_of(archive: TorchArchive, state: object, groups: list[dict]) -> int | None:
    """AdamW's step: in the groups (apex, Transformer Engine), or in its state (torch); None where it is in neither."""
    inner = state.get("optimizer", state) if isinstance(state, dict) else {}
    kept = inner.get("state", {}) if isinstance(inner, dict) else {}
    values = [group.get("step") for group in groups]
    if isinstance(kept, dict):
        values.append(kept.get("common_step"))
        values += [entry.get("step") for entry in list(kept.values())[:1] if isinstance(entry, dict)]
    numbers = [number_in(archive, value) for value in values]
    steps = [int(number) for number in numbers if number is not None]
    return max(steps) if steps else None


def loss_scale_of(archive: TorchArchive, scaler: object) -> dict[str, float | int] | None:
    """The dynamic loss scale's numbers; None where there is none."""
    if not isinstance(scaler, dict):
        return None
    numbers = {str(name): number_in(archive, value) for name, value in scaler.items()}
    return {name: number for name, number in numbers.items() if number is not None} or None
