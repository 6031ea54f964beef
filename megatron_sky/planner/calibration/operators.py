"""The program's operators, each as something that can be run and timed: `prepare` gives one for a kind and sizes.

A layer is the program's own, with stand-ins in the place of its products and its attention, which cost nothing: what is
left are norms, positions, activation, additions, and what Python and autograd take.
"""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_sky.config.schema import Config, KernelsConfig, ModelConfig, ParallelConfig, PrecisionConfig
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.model.build import build_model
from megatron_sky.model.mcore_config import torch_dtype
from megatron_sky.optim import update
from megatron_sky.planner.measured import TINY
from megatron_sky.trainer.build import build_runner
from megatron_sky.trainer.step import StepRunner

Run = Callable[[], None]
_COLD_BYTES = 64 << 20
"""Weights lie in more memory than the caches hold, as those of a step do."""
_LAYERS_BETWEEN = 8
"""The attention whose backward pass is timed was computed so many layers before."""
_GATED = {"normalization": "rmsnorm", "activation": "swiglu", "position_embedding": "rope", "add_bias_linear": False}
_PLAIN = {
    "normalization": "layernorm",
    "activation": "gelu",
    "position_embedding": "learned_absolute",
    "add_bias_linear": True,
}


@dataclass(frozen=True)
class Operator:
    """One of `measured.KINDS` at a size; `run` does it once."""

    kind: str
    sizes: tuple[int, ...]
    run: Run


class Operators:
    """Makes operators ready on this rank's device, in one format."""

    def __init__(self, context: ParallelContext, dtype: str):
        self._context, self._format = context, dtype
        self._dtype = torch_dtype(PrecisionConfig(dtype=dtype))
        count = _COLD_BYTES // self._dtype.itemsize
        self._pool = torch.randn(count, device=context.device).to(self._dtype)
        self._sums = torch.zeros(_COLD_BYTES // 4, device=context.device)

    def prepare(self, kind: str, sizes: tuple[int, ...]) -> list[Operator]:
        """All that these sizes serve, to be run in turn: a forward pass, then its backward pass."""
        if kind == "gradients":
            return self._update(*sizes)
        return [Operator(name, sizes, run) for name, run in self._ready(kind, sizes)]

    def _ready(self, kind: str, sizes: tuple[int, ...]) -> list[tuple[str, Run]]:
        if kind.startswith("product"):
            return self._product(*sizes)
        if kind.startswith("attention"):
            return self._attention(*sizes)
        if "layer" in kind:
            return self._layer(kind.partition("_")[0], *sizes)
        return self._loss(*sizes) if kind == "loss" else self._embedding(*sizes)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self._context.device, dtype=self._dtype)

    def _product(self, m: int, n: int, k: int) -> list[tuple[str, Run]]:
        weights, buffers = (itertools.cycle(_parts(pool, n, k)) for pool in (self._pool, self._sums))
        inputs, gradients = self._random(m, 1, k), self._random(m, 1, n)
        add = _gradient_product()

        def forward() -> None:
            torch.matmul(inputs, next(weights).t())

        def input_gradient() -> None:
            gradients.matmul(next(weights))

        def weight_gradient() -> None:
            add(inputs.view(m, k), gradients.view(m, n), next(buffers))

        return [
            ("product_forward", forward),
            ("product_input_gradient", input_gradient),
            ("product_weight_gradient", weight_gradient),
        ]

    def _attention(self, batch: int, queries: int, keys: int, heads: int, head_size: int) -> list[tuple[str, Run]]:
        assert queries == keys, "whole sequences are measured"
        core = self._layer_of(self._model(heads * head_size, heads, 64, queries)).self_attention.core_attention
        parts = _parts(self._pool, queries, batch, heads, 3 * head_size)[:_LAYERS_BETWEEN]
        inputs = itertools.cycle([part.requires_grad_() for part in parts])
        gradient = self._random(queries, batch, heads * head_size)
        kept: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

        def forward() -> None:
            mixed = next(inputs)
            kept.append((mixed, core(*mixed.split(head_size, dim=-1), None)))

        def backward() -> None:  # what it reads was computed long before, as in a step
            mixed, output = kept.popleft()
            output.backward(gradient)
            mixed.grad = None

        for _ in parts[1:]:
            forward()

        return [("attention_forward", forward), ("attention_backward", backward)]

    def _layer(self, style: str, tokens: int, hidden: int, qkv: int, ffn: int) -> list[tuple[str, Run]]:
        head_size = 64 if qkv >= 768 else 32
        heads = qkv // (3 * head_size)
        model = self._model(
            hidden, heads, ffn, tokens, kv_channels=head_size, **(_GATED if style == "gated" else _PLAIN)
        )
        chunk = self._chunk(model)
        layer = chunk.decoder.layers[0]
        attention, mlp = layer.self_attention, layer.mlp
        for owner, name, width in (
            (attention, "linear_qkv", qkv),
            (attention, "linear_proj", hidden),
            (mlp, "linear_fc1", ffn * (2 if style == "gated" else 1)),
            (mlp, "linear_fc2", hidden),
        ):
            inner = getattr(owner, name)
            setattr(
                owner,
                name,
                _NoProduct(self._random(tokens, 1, width), inner.weight.shape[1], getattr(inner, "bias", None)),
            )
        attention.core_attention = _NoAttention(self._random(tokens, 1, heads * head_size))
        positions = chunk.rotary_pos_emb(tokens) if style == "gated" else None
        inputs, gradient = self._random(tokens, 1, hidden).requires_grad_(), self._random(tokens, 1, hidden)
        kept: list[torch.Tensor] = []

        def forward() -> None:
            kept[:] = [layer(hidden_states=inputs, attention_mask=None, rotary_pos_emb=positions)[0]]

        def backward() -> None:
            kept.pop().backward(gradient)
            inputs.grad = None
            for parameter in layer.parameters():
                parameter.grad = None

        return [(f"{style}_layer_forward", forward), (f"{style}_layer_backward", backward)]

    def _loss(self, tokens: int, vocabulary: int) -> list[tuple[str, Run]]:
        chunk = self._chunk(self._model(64, 2, 64, 64))
        logits = self._random(tokens, 1, vocabulary)
        labels = torch.randint(64, (1, tokens), device=self._context.device)

        def both() -> None:
            logits.requires_grad_()
            chunk.compute_language_model_loss(labels, logits).float().sum().backward()
            logits.grad = None

        return [("loss", both)]

    def _embedding(self, tokens: int, vocabulary: int, hidden: int) -> list[tuple[str, Run]]:
        chunk = self._chunk(self._model(hidden, hidden // 32, 64, 64, vocab_size=vocabulary))
        embedding = chunk.embedding.word_embeddings
        weight = embedding.weight
        main_gradient = torch.zeros_like(weight, dtype=torch.float32)
        numbers = torch.randint(vocabulary, (1, tokens), device=self._context.device)

        def both() -> None:
            rows = embedding(numbers)
            rows.backward(rows.detach())
            main_gradient.add_(weight.grad)
            weight.grad = None

        return [("embedding", both)]

    def _update(self, parameters: int) -> list[Operator]:
        hidden = 256 if parameters < 1 << 22 else 512
        runner = self.runner(1, vocab_size=parameters // hidden // 2, hidden_size=hidden, num_attention_heads=8)
        whole = runner.model.num_parameters()
        nothing = torch.zeros(0, dtype=torch.float64, device=runner.context.device)

        def gradients() -> None:
            for chunk in runner.model.chunks:
                chunk.zero_grad_buffer()
            runner.optimizer.zero_grad()
            for chunk in runner.model.chunks:
                chunk.scale_gradients(1.0)

        def step() -> None:
            norm, _ = update.measure(runner.optimizer, nothing)
            assert norm is not None
            update.apply(runner.optimizer, norm + 10.0)  # clipped, as at the beginning of a run

        return [Operator("gradients", (whole,), gradients), Operator("update", (whole,), step)]

    def runner(self, layers: int, **shape: int) -> StepRunner:
        """A model that can be trained, as many layers of TINY unless its shape is told; every rank has all of it."""
        config = tiny_config(self._format, layers, **shape)
        return build_runner(config, context=self._context, beat=lambda _: None, draws_weights=True)

    def _model(self, hidden: int, heads: int, ffn: int, length: int, **fields) -> ModelConfig:
        shape = {"vocab_size": 128, "kv_channels": hidden // heads, "backend": "torch"} | fields
        return ModelConfig(
            hidden_size=hidden,
            ffn_hidden_size=ffn,
            num_layers=1,
            num_attention_heads=heads,
            seq_length=length,
            **shape,
        )

    def _chunk(self, model: ModelConfig):
        config = tiny_config(self._format, 1)
        built = build_model(
            model,
            parallel=ParallelConfig(),
            precision=config.precision,
            train=config.train,
            context=self._context,
            kernels=KernelsConfig(),
            ddp=False,
        )
        chunk = built.chunks[0]
        return chunk if self._format == "fp32" else chunk.module

    def _layer_of(self, model: ModelConfig):
        return self._chunk(model).decoder.layers[0]


def tiny_config(dtype: str, layers: int, **shape: int) -> Config:
    """A recipe of TINY's shape; its data are named and not read."""
    model = {
        "vocab_size": TINY["vocabulary"],
        "hidden_size": TINY["hidden"],
        "ffn_hidden_size": TINY["ffn"],
        "num_attention_heads": TINY["heads"],
        "seq_length": TINY["tokens"],
        "num_layers": layers,
        "backend": "torch",
    }
    return Config.model_validate(
        {
            "model": model | shape,
            "precision": {"dtype": dtype},
            "parallel": {"distributed_optimizer": False},
            "data": {"train": [{"name": "none", "path": "none"}]},
            "schedule": {"style": "constant", "lr": 1e-4},
            "train": {"run_dir": "none", "tokens": 1 << 20, "global_batch_size": 1 << 10, "micro_batch_size": 1},
        }
    )


class _Pass(torch.autograd.Function):
    """What a stand-in gives: a tensor that lies ready, each way."""

    @staticmethod
    def forward(ctx, inputs, output, width: int):
        ctx.shape = inputs.shape
        ctx.like = inputs
        return output.detach()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.like.detach(), None, None


class _NoProduct(torch.nn.Module):
    """In a linear layer's place: `(output, bias)` without a product."""

    def __init__(self, output: torch.Tensor, width: int, bias: torch.Tensor | None):
        super().__init__()
        self.output, self.width, self.bias = output, width, bias

    def forward(self, inputs, *_, **__):
        return _Pass.apply(inputs, self.output, self.width), self.bias


class _PassThree(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, output):
        ctx.like = (query, key, value)
        return output.detach()

    @staticmethod
    def backward(ctx, gradient):
        return *(tensor.detach() for tensor in ctx.like), None


class _NoAttention(torch.nn.Module):
    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, query, key, value, *_, **__):
        return _PassThree.apply(query, key, value, self.output)


def _parts(pool: torch.Tensor, *shape: int) -> list[torch.Tensor]:
    """As many tensors of this shape as lie in the pool; one of its own where not one does."""
    size = math.prod(shape)
    if size > pool.numel():
        return [pool.new_ones(shape)]
    return [part.view(shape) for part in pool.split(size) if part.numel() == size]


def _gradient_product() -> Callable:
    """What adds a weight's gradient to its fp32 buffer: the program's own, or what megatron-core does without it."""
    with contextlib.suppress(ImportError):  # without it the product is added in a second pass
        import fused_weight_gradient_mlp_cuda as fused  # type: ignore[import-not-found]  # ours, or apex's

        return fused.wgrad_gemm_accum_fp32

    def apart(inputs, gradients, buffer) -> None:
        buffer.add_(gradients.t().matmul(inputs))

    return apart
