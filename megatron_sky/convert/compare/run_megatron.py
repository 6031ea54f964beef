"""A checkpoint run by megatron-core's modules, one layer in memory at a time, in this one process and float32."""

import contextlib

import numpy as np
import torch

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32
from megatron_sky.config.schema import ParallelConfig, PrecisionConfig, TrainConfig
from megatron_sky.convert.sources import Source

_SEPARATE = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


@contextlib.contextmanager
def open_single():
    """Process groups of this one process; those that are open already are used and left open."""
    from megatron_sky.distributed.context import open_context
    from megatron_sky.distributed.launch import RankInfo

    with open_context(ParallelConfig(), RankInfo()) as context:
        yield context


class MegatronRunner:
    """Hidden states are `[s, h]` float32 arrays; one sequence at a time."""

    def __init__(self, source: Source, context):
        from megatron_sky.model.build import build_model

        shape = {"num_layers": 1, "vocab_multiple": 1, "hidden_dropout": 0.0, "attention_dropout": 0.0}
        self._weights = source.weights
        built = build_model(
            source.model.model_copy(update=shape | {"backend": "torch"}),
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype="fp32"),
            train=TrainConfig(run_dir="none", tokens=1, global_batch_size=1),
            context=context,
            ddp=False,
            init=False,
        )
        self._model = built.chunks[0].eval()
        self._device = context.device
        for name, tensor in source.weights.items():
            if not name.startswith(weights.LAYERS):
                _fill(self._model, name, tensor)

    def embed(self, tokens: list[int]) -> np.ndarray:
        """Token ids to the first layer's input."""
        ids = torch.tensor([tokens], device=self._device)
        positions = torch.arange(len(tokens), device=self._device)[None]
        return _array(self._model.embedding(ids, positions))

    def load_layer(self, number: int) -> None:
        """Puts the weights of layer `number` in place of the last one's."""
        prefix = f"{weights.LAYERS}{number}."
        for name, tensor in self._weights.items():
            if name.startswith(prefix):
                _fill(self._model, f"{weights.LAYERS}0.{name.removeprefix(prefix)}", tensor)

    def layer(self, hidden: np.ndarray) -> np.ndarray:
        """The loaded layer's output."""
        states = self._tensor(hidden)
        rotary = self._model.rotary_pos_emb(len(hidden)) if hasattr(self._model, "rotary_pos_emb") else None
        out = self._model.decoder.layers[0](hidden_states=states, attention_mask=None, rotary_pos_emb=rotary)
        return _array(out[0] if isinstance(out, tuple) else out)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """`[s, V]`: final norm and output layer."""
        states = self._model.decoder.final_layernorm(self._tensor(hidden))
        tied = self._model.share_embeddings_and_output_weights
        weight = self._model.shared_embedding_or_output_weight() if tied else None
        return _array(self._model.output_layer(states, weight=weight)[0])

    def _tensor(self, hidden: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(hidden).to(self._device)[:, None]


def _fill(model, name: str, tensor: LazyTensor) -> None:
    for fused, separate in _SEPARATE.items():
        name = name.replace(fused, separate)
    model.get_parameter(name).copy_(torch.from_numpy(as_float32(tensor.load(), tensor.dtype)))


def _array(states: torch.Tensor) -> np.ndarray:
    """`[s, 1, h]` -> `[s, h]`."""
    return states[:, 0].float().cpu().numpy()
