"""The network, its number formats and its kernels."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from megatron_sky.config.presets import PRESETS
from megatron_sky.config.sections.base import Fraction, Positive, Section

# Limits that no honest model meets.
Layers = Annotated[int, Field(ge=1, le=10_000)]
Heads = Annotated[int, Field(ge=1, le=1 << 16)]
Width = Annotated[int, Field(ge=1, le=1 << 24)]
Length = Annotated[int, Field(ge=1, le=1 << 27)]


class RopeScaling(Section):
    """Rotary positions stretched to a longer context than the frequencies alone reach."""

    kind: Literal["linear", "llama3"] = Field(
        description="linear: positions divided by factor; llama3: LLaMA 3.1's, which stretches the long waves only "
        "(low_freq_factor 1, high_freq_factor 4, original context 8192)."
    )
    factor: float = Field(gt=0, description="How many times longer the context becomes.")


class ModelConfig(Section):
    """The network's shape. The defaults are LLaMA's: RMSNorm pre-norm, SwiGLU, RoPE, no biases, untied embeddings."""

    preset: str | None = Field(None, description=f"Named shape that fills the fields left out: {', '.join(PRESETS)}.")
    vocab_size: Width = Field(description="True vocabulary size of the tokenizer, in tokens; padding is not counted.")
    hidden_size: Width = Field(description="Width of the residual stream.")
    ffn_hidden_size: Width = Field(description="Inner width of the feed-forward layer (of each half for SwiGLU).")
    num_layers: Layers = Field(description="Number of transformer layers.")
    num_attention_heads: Heads = Field(description="Number of query heads.")
    num_query_groups: Heads | None = Field(
        None, description="Number of key/value heads (grouped-query attention); null: one per query head."
    )
    kv_channels: Width | None = Field(
        None, description="Width of one attention head; null: hidden_size / num_attention_heads."
    )
    seq_length: Length = Field(4096, description="Context length, in tokens.")
    position_embedding: Literal["rope", "learned_absolute"] = Field("rope", description="How positions are encoded.")
    rotary_base: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies (RoPE theta).")
    rope_scaling: RopeScaling | None = Field(
        None, description="Stretching of rotary positions to a longer context; null: none."
    )
    normalization: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="Kind of the pre-norms.")
    norm_epsilon: float = Field(1e-6, gt=0, description="Constant added to the variance in a norm.")
    activation: Literal["swiglu", "gelu", "gelu_exact"] = Field(
        "swiglu", description="Feed-forward activation (gelu: its tanh form, as GPT-2; gelu_exact: by erf)."
    )
    add_bias_linear: bool = Field(False, description="Biases in the linear layers.")
    tie_embeddings: bool = Field(False, description="One matrix for input embedding and output layer.")
    hidden_dropout: Fraction = Field(0.0, description="Dropout probability on residual branches and embeddings.")
    attention_dropout: Fraction = Field(0.0, description="Dropout probability on attention weights.")
    init_std: float = Field(
        0.02,
        gt=0,
        description="Standard deviation of initial weights; the layers that write to the residual stream use "
        "init_std / sqrt(2 * num_layers).",
    )
    vocab_multiple: Width = Field(
        128,
        description="The embedding is padded to a multiple of this many rows, the same in every layout; "
        "must be a multiple of parallel.tp_size.",
    )
    backend: Literal["auto", "torch", "te"] = Field(
        "auto",
        description="Layer implementation: te (Transformer Engine, GPU), torch (anywhere), auto (te where CUDA and "
        "Transformer Engine are present).",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        if given["preset"] not in PRESETS:
            return given  # told by the field's own validator
        return PRESETS[given["preset"]] | given

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}")
        return name

    @property
    def query_groups(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding matrix: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


class Fp8Config(Section):
    """8-bit products in the layers' linears; embedding, attention core, norms and output layer keep dtype."""

    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        "delayed",
        description="Where scales come from: the steps before (delayed), the tensor itself (tensorwise), its blocks of "
        "128 (blockwise) or of 32 numbers (mxfp8); the last two need the te backend, mxfp8 a Blackwell GPU.",
    )
    format: Literal["hybrid", "e4m3"] = Field(
        "hybrid", description="hybrid: E4M3 forward, E5M2 for gradients; e4m3: both E4M3."
    )
    amax_history_len: Positive = Field(
        64, description="delayed only: how far scales look back, in steps (torch) or micro batches (te)."
    )
    amax_compute_algo: Literal["max", "most_recent"] = Field(
        "max", description="delayed only: scale for the history's largest amax, or for the newest."
    )
    first_last_layers_bf16: bool = Field(False, description="Keep the first and the last layer in dtype.")
    param_gather: bool = Field(
        False, description="te only: keep weights in 8 bits and gather them so over the data-parallel ranks."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_recipe_alone(cls, given: object) -> object:
        return {"recipe": given} if isinstance(given, str) else given


class PrecisionConfig(Section):
    """Number formats."""

    dtype: Literal["fp32", "bf16", "fp16"] = Field("bf16", description="Format of weights and activations.")
    fp8: Fp8Config | None = Field(None, description="8-bit products, or a recipe's name alone; null: none.")
    initial_loss_scale: float = Field(2.0**16, gt=0, description="First loss scale of dynamic scaling (fp16 only).")
    grad_reduce_in_fp32: bool = Field(True, description="Accumulate and reduce gradients in fp32.")

    def __str__(self) -> str:
        return self.dtype if self.fp8 is None else f"{self.dtype} with fp8 products ({self.fp8.recipe})"


class KernelsConfig(Section):
    """Which fused and captured kernels a GPU runs. The defaults need nothing but torch."""

    gradient_accumulation_fusion: bool = Field(
        False,
        description="Add weight gradients to their buffer within the product; needs apex's extensions on a GPU, and is "
        "always so on a CPU.",
    )
    cross_entropy_fusion: bool = Field(
        True, description="Vocabulary-parallel cross-entropy in one compiled kernel; never on a CPU."
    )
    rope_fusion: bool = Field(False, description="Rotary positions in one kernel (te only).")
    cuda_graphs: bool = Field(
        False, description="Capture each layer's forward and backward pass in a CUDA graph (te only)."
    )
    deterministic: bool = Field(
        False, description="Only kernels and collectives whose result does not vary from run to run; slower."
    )
