"""A checkpoint of any kind as a model of transformers, ready to generate.

A native checkpoint's weights go one by one from their files, by the converter's rules, into the model's own parameters:
no folder is written, and at most one weight is there twice. Adapters are merged into the weights of their base on the
way.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, read_ahead
from megatron_sky.convert.huggingface import families
from megatron_sky.convert.huggingface.config import build_config
from megatron_sky.convert.sources import Source, open_source
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.inference.checkpoints import HF, Checkpoint
from megatron_sky.inference.hf_model import load_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_for_generation(
    checkpoint: Checkpoint, device: torch.device, dtype: str | None = None
) -> tuple["PreTrainedModel", tuple[int, ...]]:
    """(the model with its weights on `device`, the ids of its own settings that end a text).

    `dtype` None: float32 on a CPU, else the weights' own. Raises CheckpointError, for a model too that no architecture
    of transformers computes; ConfigError for a dtype that isn't known.
    """
    import transformers

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(Problem("--dtype", f"must be one of {', '.join(DTYPES)}", value=dtype))
    chosen = None if dtype is None else DTYPES[dtype]
    if checkpoint.kind == HF:
        model = load_folder(checkpoint.path, device, chosen)
    else:
        source = open_source(checkpoint.path, base=checkpoint.base)
        own = torch.float32 if device.type == "cpu" else getattr(torch, TORCH_NAMES[source.dtype])
        model = stream_weights(source, device, chosen or own)
    ends = _end_ids(model.generation_config)
    model.generation_config = transformers.GenerationConfig()  # how a token is chosen, the user says
    return model.eval(), ends


def _end_ids(settings) -> tuple[int, ...]:
    ends = getattr(settings, "eos_token_id", None)
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def stream_weights(source: Source, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
    """transformers' model of `source`, each weight read, split by its rule, and put where it belongs.

    Raises CheckpointError, which names the fields that no architecture of transformers has.
    """
    import transformers
    from accelerate import init_empty_weights

    architecture = families.architecture_for(source.model)
    settings = build_config(
        source.model, architecture=architecture, dtype=source.dtype, special_ids={}, kept=source.hugging_face
    )
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    names = [name for unit in weights.units(source.model) for name in unit]
    for name, bits in zip(names, read_ahead(source.weights[name] for name in names), strict=True):
        rule = families.rule_for(name, source.model, architecture)
        stored = getattr(torch, TORCH_NAMES[source.weights[name].dtype])
        for target, part in zip(rule.names, rule.split(bits), strict=True):
            tensor = torch.from_numpy(np.ascontiguousarray(part).view(np.uint8)).view(stored).view(part.shape)
            _put(model, target, tensor.to(device=device, dtype=dtype))
    model.tie_weights()
    if (kept := source.hugging_face) is not None and kept.generation is not None:
        model.generation_config = transformers.GenerationConfig.from_dict(kept.generation)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not missing, f"no weight went into {missing}"
    return model.to(device)


def _put(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    expected = getattr(module, leaf).shape
    assert tensor.shape == expected, f"{name}: {list(tensor.shape)}, not {list(expected)}"
    setattr(module, leaf, torch.nn.Parameter(tensor, requires_grad=False))
