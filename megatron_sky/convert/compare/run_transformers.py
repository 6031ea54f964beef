"""A Hugging Face folder run by transformers' own modules, one layer in memory at a time, in float32.

The model is transformers' class with a single layer, whose weights are replaced for each layer by those that the folder
keeps under that layer's names; this package's table of names is not used. A hook takes the layer's output, so nothing
depends on how transformers calls it. No code of the folder runs.
"""

import json

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32
from megatron_sky.convert.huggingface.config import CONFIG
from megatron_sky.convert.huggingface.families import GPT2
from megatron_sky.convert.sources import Source, hf_tensors
from megatron_sky.errors import CheckpointError


class TransformersRunner:
    """Hidden states are `[s, h]` float32 arrays; one sequence at a time."""

    def __init__(self, source: Source):
        gpt2 = source.architecture == GPT2
        self._layers, self._norm = ("transformer.h", "transformer.ln_f") if gpt2 else ("model.layers", "model.norm")
        self._folder = source.folder
        self._tensors = hf_tensors(source.folder, source.architecture)
        settings = json.loads((source.folder / CONFIG).read_text(encoding="utf-8"))
        settings["model_type"] = "gpt2" if gpt2 else "llama"
        config = (GPT2Config if gpt2 else LlamaConfig).from_dict(settings)
        config.num_hidden_layers = 1
        self._model = (GPT2LMHeadModel if gpt2 else LlamaForCausalLM)(config).float().eval()
        self._vocab_size = source.model.vocab_size
        self._seen: dict[str, torch.Tensor] = {}
        layer = self._model.get_submodule(f"{self._layers}.0")
        layer.register_forward_pre_hook(self._keep_input, with_kwargs=True)
        layer.register_forward_hook(self._keep_output)
        self._fill_outside_layers()

    def embed(self, tokens: list[int]) -> np.ndarray:
        """Token ids to the first layer's input."""
        self._model(input_ids=torch.tensor([tokens]), use_cache=False)
        return self._seen["input"][0].numpy()

    def load_layer(self, number: int) -> None:
        """Puts the weights of layer `number` in place of the last one's."""
        if number == 0 and hasattr(self._model, "transformer"):
            self._model.transformer.wpe.weight.zero_()  # positions are in the first layer's input already
        for name, _ in self._model.get_submodule(f"{self._layers}.0").named_parameters():
            self._fill(f"{self._layers}.0.{name}", f"{self._layers}.{number}.{name}")

    def layer(self, hidden: np.ndarray) -> np.ndarray:
        """The loaded layer's output."""
        self._model(inputs_embeds=torch.from_numpy(hidden)[None], use_cache=False)
        return self._seen["output"][0].numpy()

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """`[s, V]`: final norm and output layer."""
        states = self._model.get_submodule(self._norm)(torch.from_numpy(hidden)[None])
        return self._model.lm_head(states)[0, :, : self._vocab_size].numpy()

    def _fill_outside_layers(self) -> None:
        for name, _ in self._model.named_parameters():
            if not name.startswith(f"{self._layers}."):
                self._fill(name, name)

    def _fill(self, parameter: str, name: str) -> None:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self._folder}: {name}: is missing; transformers needs it")
        self._model.get_parameter(parameter).copy_(_float32(tensor))

    def _keep_input(self, _module, args: tuple, kwargs: dict) -> None:
        self._seen["input"] = args[0] if args else kwargs["hidden_states"]

    def _keep_output(self, _module, _args, output) -> None:
        self._seen["output"] = output[0] if isinstance(output, tuple) else output


def _float32(tensor: LazyTensor) -> torch.Tensor:
    return torch.from_numpy(as_float32(tensor.load(), tensor.dtype))
