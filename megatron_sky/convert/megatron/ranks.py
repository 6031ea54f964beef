"""What each tensor- and pipeline-parallel rank of Megatron-LM holds of a model, in the order of its parameters.

That order is the one in which megatron-core's modules register them: attention's projection before its query, key and
value; a norm where it stands in the layer (`local`), or as part of the linear that follows (`transformer_engine`).
Layers are numbered anew in every model chunk, as in Megatron-LM's files.
"""

from dataclasses import dataclass

from megatron_sky.checkpoint.reader import weights
from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]
COLUMNS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")
"""What is cut between tensor-parallel ranks by columns."""
WHOLE = ("layer_norm_weight", "layer_norm_bias", "linear_proj.bias", "linear_fc2.bias", "final_layernorm", "position_")
"""Parts of the names of what each tensor-parallel rank holds whole; all else is cut by rows."""
_LOCAL_ORDER = (
    "self_attention.linear_qkv.layer_norm_",
    "self_attention.linear_proj.",
    "self_attention.linear_qkv.",
    "mlp.linear_fc1.layer_norm_",
    "mlp.linear_fc1.",
    "mlp.linear_fc2.",
)
_FUSED_ORDER = (_LOCAL_ORDER[1], _LOCAL_ORDER[0], *_LOCAL_ORDER[2:])
_UNEVEN = (
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
)


@dataclass(frozen=True)
class Layout:
    """How Megatron-LM cuts a model. `num_chunks`: of a pipeline stage; `first`, `last`: layers of those stages."""

    tp_size: int = 1
    pp_size: int = 1
    num_chunks: int = 1
    first: int | None = None
    last: int | None = None
    is_fused: bool = False
    """Norms are part of the linear that follows (Transformer Engine)."""

    def num_layers(self, model: ModelConfig, stage: int) -> int:
        """Layers in each model chunk of a stage."""
        given = {0: self.first, self.pp_size - 1: self.last}
        known = {place: count for place, count in given.items() if count is not None}
        if stage in known:
            return known[stage]
        stages = (self.pp_size - len(known)) * self.num_chunks
        return (model.num_layers - sum(known.values())) // max(stages, 1)


def layout_of(settings: dict, where: str) -> Layout:
    """The layout that Megatron-LM's saved args describe. Raises CheckpointError for one that isn't known here."""
    if uneven := [name for name in _UNEVEN if settings.get(name)]:
        listed = ", ".join(f"args.{name} = {settings[name]!r}" for name in uneven)
        raise CheckpointError(
            f"{where}: {listed}: which layers lie in which stage isn't known here\n"
            "  fix: have Megatron-LM save it once with --dist-ckpt-optim-fully-reshardable, which is read in any layout"
        )
    return Layout(
        tp_size=settings.get("tensor_model_parallel_size") or 1,
        pp_size=settings.get("pipeline_model_parallel_size") or 1,
        num_chunks=settings.get("virtual_pipeline_model_parallel_size") or 1,
        first=settings.get("decoder_first_pipeline_num_layers"),
        last=settings.get("decoder_last_pipeline_num_layers"),
        is_fused=settings.get("transformer_impl", "transformer_engine") != "local",
    )


def chunk_shapes(model: ModelConfig, layout: Layout, *, stage: int, chunk: int, rows: int) -> Shapes:
    """Name -> shape of what a rank holds in one of its model chunks, in the order of its parameters.

    `rows`: of the whole embedding, padding included. A tied model's last stage has a copy of the embedding, as its
    output layer.
    """
    whole: Shapes = {}
    h = model.hidden_size
    is_first = (stage, chunk) == (0, 0)
    is_last = (stage, chunk) == (layout.pp_size - 1, layout.num_chunks - 1)
    if is_first:
        whole[weights.WORD_EMBEDDING] = (rows, h)
        if model.position_embedding == "learned_absolute":
            whole[weights.POSITION_EMBEDDING] = (model.seq_length, h)
    layer = _in_order(weights.layer(model), layout.is_fused)
    for number in range(layout.num_layers(model, stage)):
        whole |= {f"{weights.LAYERS}{number}.{name}": shape for name, shape in layer.items()}
    if is_last:
        final = {name: shape for name, shape in weights.units(model)[-1].items() if name != weights.OUTPUT_LAYER}
        whole |= final
        if not model.tie_embeddings or not is_first:
            whole[weights.OUTPUT_LAYER] = (rows, h)
    return {name: _cut(name, shape, layout.tp_size) for name, shape in whole.items()}


def is_whole(name: str) -> bool:
    """Whether each tensor-parallel rank holds all of the tensor."""
    return any(mark in name for mark in WHOLE)


def _in_order(layer: Shapes, is_fused: bool) -> Shapes:
    order = _FUSED_ORDER if is_fused else _LOCAL_ORDER

    def place(name: str) -> int:
        longest = max((prefix for prefix in order if name.startswith(prefix)), key=len)
        return order.index(longest)

    return {name: layer[name] for name in sorted(layer, key=place)}


def _cut(name: str, shape: tuple[int, ...], tp_size: int) -> tuple[int, ...]:
    if is_whole(name):
        return shape
    if name.endswith(COLUMNS):
        return (shape[0], shape[1] // tp_size)
    return (shape[0] // tp_size, *shape[1:])
