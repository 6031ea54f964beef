"""A native checkpoint run by megatron-core, split over ranks as asked, whatever layout saved it."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_sky.checkpoint import state
from megatron_sky.checkpoint.description import CONFIG, read_description
from megatron_sky.checkpoint.reader.index import METADATA
from megatron_sky.checkpoint.reader.torch_dist import read_stored
from megatron_sky.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError
from megatron_sky.inference.logits import losses_of_logits, row_chunks
from megatron_sky.model.build import build_model
from megatron_sky.model.flops import num_parameters


class NativeModel:
    """A `Model`. On a CPU it computes in float32, on a GPU in the run's own precision.

    The embedding's padding rows are no tokens: they are left out of the softmax, as an exported model has none.
    """

    def __init__(self, folder: Path, context: ParallelContext):
        saved = read_description(folder)
        config = saved.config
        _check_size(folder, config.model)
        layout = context.layout
        self._context = context
        self.device, self.share, self.shares = context.device, context.place.dp_rank, layout.dp_size
        self.answers = context.is_last_stage and context.place.tp_rank == 0
        on_cpu = context.device.type == "cpu"
        precision = PrecisionConfig(dtype="fp32") if on_cpu else config.precision
        built = build_model(
            saved.model.model_copy(update={"hidden_dropout": 0.0, "attention_dropout": 0.0}),
            parallel=ParallelConfig(tp_size=layout.tp_size, pp_size=layout.pp_size, distributed_optimizer=False),
            precision=precision,
            train=config.train,
            context=context,
            ddp=False,
            init=False,
        )
        (chunk,) = built.chunks
        if config.model.activation == "swiglu":
            built.config.bias_activation_fusion = True  # the other way takes a pass through memory to add zero
        state.load(folder, context=context, chunks=[chunk])
        self._model = (chunk if precision.dtype == "fp32" else chunk.module).eval()
        if on_cpu and layout.tp_size == 1:
            for layer in self._model.decoder.layers:
                layer.mlp.forward = _in_pieces(layer.mlp)
        self._model.post_process = False  # it stops at the hidden states; the output layer runs where it is needed
        self._output: torch.Tensor | None = _output_weight(self._model) if context.is_last_stage else None
        self._vocab_size, self._hidden_size = config.model.vocab_size, config.model.hidden_size
        self._dtype = next(self._model.parameters()).dtype

    def losses(self, tokens: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        hidden = self._hidden(tokens)
        if hidden is None:
            return None
        assert self._output is not None, "the last stage has the output layer"
        hidden = hidden[_sequence_first(places, tokens)]
        parts = [self._losses(hidden[rows], targets[rows]) for rows in row_chunks(len(places), len(self._output))]
        losses, likeliest = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(likeliest)

    def _hidden(self, tokens):
        """`[s * b, h]` after the last norm; None on a rank of an earlier stage, which hands its states on."""
        (b, s), context = tokens.shape, self._context
        stage = context.place.pp_rank
        if not context.is_first_stage:
            states = torch.empty(s, b, self._hidden_size, dtype=self._dtype, device=self.device)
            dist.recv(states, group=context.pp_group, group_src=stage - 1)
            self._model.set_input_tensor(states)
        positions = torch.arange(s, device=self.device).expand(b, s)
        hidden = self._model(tokens, positions, None)
        if not context.is_last_stage:
            dist.send(hidden.contiguous(), group=context.pp_group, group_dst=stage + 1)
            return None
        return hidden.flatten(0, 1)

    def _logits(self, hidden):
        """`[n, V / tp]`; the padding rows' are minus infinity."""
        assert self._output is not None, "the last stage has the output layer"
        logits = F.linear(hidden, self._output)
        first = self._context.place.tp_rank * len(self._output)
        logits[:, max(0, self._vocab_size - first) :] = -torch.inf
        return logits

    def _losses(self, hidden, targets):
        logits = self._logits(hidden)
        if self._context.layout.tp_size == 1:
            return losses_of_logits(logits, targets)
        return self._split_losses(logits.float(), targets)

    def _split_losses(self, logits, targets):
        """`losses_of_logits` where each tensor-parallel rank has a part of the vocabulary."""
        group = self._context.tp_group
        largest = logits.amax(-1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        total = (logits - largest[:, None]).exp().sum(-1)
        place = targets - self._context.place.tp_rank * logits.shape[1]
        here = (place >= 0) & (place < logits.shape[1])
        own = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        own = torch.where(here, own, 0.0)
        dist.all_reduce(total, group=group)
        dist.all_reduce(own, group=group)
        return total.log() + largest - own, own >= largest


def _in_pieces(mlp):
    """The feed-forward layer's forward, a few hundred tokens at a time: what lies between its two products stays in a
    processor's cache, which is a tenth of a small model's time. Tokens don't see each other there."""
    whole, width = mlp.forward, len(mlp.linear_fc1.weight)

    def forward(hidden, *args, **kwargs):
        rows = hidden.flatten(0, -2)
        results = [whole(rows[piece], *args, **kwargs) for piece in row_chunks(len(rows), width)]
        parts, biases = zip(*results, strict=True)
        return torch.cat(parts).view(hidden.shape), biases[0]

    return forward


def _sequence_first(places, tokens):
    """Flat positions in `[b, s]` as those in megatron-core's `[s, b]`."""
    b, s = tokens.shape
    return places % s * b + places // s


def _check_size(folder: Path, model: ModelConfig) -> None:
    """Raises CheckpointError where the recipe describes a larger model than the folder holds, before any is made."""
    described = num_parameters(model, padded=True)
    stored = sum(math.prod(tensor.shape) for tensor in read_stored(folder).values())
    if described > stored:
        raise CheckpointError(
            f"{folder / CONFIG}: describes a model of {described:,} parameters, and {METADATA} has {stored:,}\n"
            "  fix: restore the checkpoint from a copy"
        )


def _output_weight(model):
    """The output layer's rows `[V / tp, h]`, padding included."""
    if model.share_embeddings_and_output_weights:
        model.post_process = True  # on a later stage the tied weight is the output layer's
        weight = model.shared_embedding_or_output_weight()
        model.post_process = False
        return weight
    return model.output_layer.weight
