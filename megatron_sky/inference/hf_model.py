"""A Hugging Face folder run by transformers. No code of the folder runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError
from megatron_sky.inference.hf_folder import HF_CONFIG, check_name, check_size, hf_settings, is_skywork, said
from megatron_sky.inference.logits import losses_of_logits, row_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Their logits are lm_head(hidden states) and nothing more, so it can run where a prediction counts alone.
_PLAIN_HEADS = ("LlamaForCausalLM", "GPT2LMHeadModel", "MistralForCausalLM", "Qwen2ForCausalLM")


class HfModel:
    """A `Model`. Every rank holds the whole model and takes a share of the batches."""

    answers = True

    def __init__(self, model: "PreTrainedModel", context: ParallelContext):
        self.device, self.share, self.shares = context.device, context.rank, context.world_size
        self._model = model

    def losses(self, tokens: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(tokens, places)
        chunks = row_chunks(len(places), self._model.config.vocab_size)
        parts = [losses_of_logits(logits(rows), targets[rows]) for rows in chunks]
        losses, likeliest = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(likeliest)

    def _logits(self, tokens, places) -> Callable:
        """A function from a slice of `places` to their logits `[n, V]`. Without a mask: padding lies to the right,
        where a causal model does not look."""
        if type(self._model).__name__ in _PLAIN_HEADS:
            hidden = self._model.base_model(input_ids=tokens, use_cache=False)[0].flatten(0, 1)
            return lambda rows: self._model.lm_head(hidden[places[rows]])
        logits = self._model(input_ids=tokens, use_cache=False).logits.flatten(0, 1)
        return lambda rows: logits[places[rows]]


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """The folder's model on a device; `dtype` None: float32 on a CPU, else its own. Raises CheckpointError."""
    own = torch.float32 if device.type == "cpu" else _own_dtype(folder)
    return load_model(folder, dtype or own).to(device=device)


def _own_dtype(folder: Path) -> torch.dtype:
    """The number format of the weights, as config.json says it; the name of the field has changed over the years."""
    settings = hf_settings(folder)
    name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{folder / HF_CONFIG}: dtype = {name!r}: is no number format")
    return dtype


def load_model(folder: Path, dtype: torch.dtype):
    """transformers' own module with the folder's weights in `dtype`, ready to be asked.

    Raises CheckpointError where transformers can't load the folder, or lacks a weight and would make it up.
    """
    import transformers

    check_name(folder)
    transformers.utils.logging.disable_progress_bar()
    settings = hf_settings(folder)
    check_size(folder, settings)
    kind: Any = transformers.LlamaForCausalLM if is_skywork(settings) else transformers.AutoModelForCausalLM
    given: dict[str, Any] = {"trust_remote_code": False, "dtype": dtype}
    try:
        if is_skywork(settings):
            given = {"config": transformers.LlamaConfig.from_dict(settings | {"model_type": "llama"}), "dtype": dtype}
        # A weight of another shape is then among what was found, by name, and not an error without one.
        model, loading = kind.from_pretrained(
            str(folder), output_loading_info=True, ignore_mismatched_sizes=True, **given
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a file of another shape causes within it
        raise CheckpointError(f"{folder}: transformers can't load it: {said(error)}") from error
    _check_whole(folder, model, loading)
    return model.eval()


def _check_whole(folder: Path, model: torch.nn.Module, loading: dict) -> None:
    """Raises CheckpointError for weights that transformers did not find and made up: random numbers.

    A tied weight, which a folder holds once, is not among them.
    """
    wrong = [f"{name} is missing" for name in sorted(loading["missing_keys"])]
    for weight in loading["mismatched_keys"]:
        name, own = (weight, None) if isinstance(weight, str) else weight[:2]  # transformers 4 gives the name alone
        has = "another shape" if own is None else f"the shape {list(own)}"
        wrong.append(f"{name} has {has}, not {list(model.state_dict()[name].shape)}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{folder}: its weights are not those of the model in its config.json: {'; '.join(wrong[:5])}{more}\n"
            "  fix: fetch or export the folder again"
        )
