"""A Hugging Face folder loaded and run by transformers itself, one layer after another in float32.

transformers reads the files, decides what is tied and makes the layers; nothing of this package's reader or table of
names is used. The weights stay in the number format of the files (which transformers maps into memory) until their
layer's turn. A hook takes the layer's output, so nothing depends on how transformers calls it. No code of the folder
runs.
"""

import numpy as np
import torch

from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES
from megatron_sky.convert.huggingface.families import GPT2
from megatron_sky.convert.sources import Source
from megatron_sky.inference.hf_model import load_model


class TransformersRunner:
    """Hidden states are `[s, h]` float32 arrays; one sequence at a time."""

    def __init__(self, source: Source):
        uniform = len(source.formats) == 1  # else one of them would round the others
        self._model = load_model(source.folder, getattr(torch, TORCH_NAMES[source.dtype]) if uniform else torch.float32)
        self._base = self._model.base_model
        self._name, norm = ("h", "ln_f") if source.architecture == GPT2 else ("layers", "norm")
        self._layers = list(getattr(self._base, self._name))
        setattr(self._base, self._name, torch.nn.ModuleList())
        self._model.float()
        self._norm = getattr(self._base, norm)
        self._vocab_size = source.model.vocab_size
        self._seen: dict[str, torch.Tensor] = {}

    def embed(self, tokens: list[int]) -> np.ndarray:
        """Token ids to the first layer's input."""
        self._put_in(0)
        self._model(input_ids=torch.tensor([tokens]), use_cache=False)
        return self._seen["input"][0].numpy()

    def load_layer(self, number: int) -> None:
        """Puts layer `number` in place of the last one, whose weights are let go."""
        if number == 0 and hasattr(self._base, "wpe"):
            positions = self._base.wpe.weight
            positions.data = torch.zeros_like(positions)  # they are in the first layer's input already
        self._put_in(number)
        self._layers[number] = None

    def layer(self, hidden: np.ndarray) -> np.ndarray:
        """The loaded layer's output."""
        self._model(inputs_embeds=torch.from_numpy(hidden)[None], use_cache=False)
        return self._seen["output"][0].numpy()

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """`[s, V]`: final norm and output layer."""
        return self._model.lm_head(self._norm(torch.from_numpy(hidden)[None]))[0, :, : self._vocab_size].numpy()

    def _put_in(self, number: int) -> None:
        layer = self._layers[number].float()
        if not layer._forward_hooks:
            layer.register_forward_pre_hook(self._keep_input, with_kwargs=True)
            layer.register_forward_hook(self._keep_output)
        setattr(self._base, self._name, torch.nn.ModuleList([layer]))

    def _keep_input(self, _module, args: tuple, kwargs: dict) -> None:
        self._seen["input"] = args[0] if args else kwargs["hidden_states"]

    def _keep_output(self, _module, _args, output) -> None:
        self._seen["output"] = output[0] if isinstance(output, tuple) else output
