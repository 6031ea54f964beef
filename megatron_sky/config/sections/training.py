"""How the model is trained: its layout over ranks, optimizer, schedule, budget and sessions."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_sky.config.sections.base import FilePath, Fraction, Positive, Section
from megatron_sky.config.sections.data import Ramp
from megatron_sky.config.units import TokenCount


class ParallelConfig(Section):
    """How the model is split. The data-parallel size is what remains: world_size / (tp * pp * cp)."""

    tp_size: Positive = Field(1, description="Tensor-parallel size, in ranks.")
    pp_size: Positive = Field(1, description="Pipeline-parallel size, in ranks (pipeline stages).")
    vpp_size: Positive = Field(1, description="Model chunks per pipeline stage (interleaved 1F1B when above 1).")
    cp_size: Positive = Field(1, description="Context-parallel size, in ranks; each holds a part of the sequence.")
    sequence_parallel: bool = Field(
        False, description="Split norms and dropouts along the sequence over the tensor-parallel ranks."
    )
    distributed_optimizer: bool = Field(
        True, description="Shard the optimizer state over data-parallel ranks (ZeRO-1)."
    )
    overlap_grad_reduce: bool = Field(False, description="Reduce gradients while the backward pass still runs.")
    overlap_param_gather: bool = Field(False, description="Gather updated parameters while the forward pass runs.")
    grad_bucket_size: Positive | None = Field(
        None, description="Parameters per gradient bucket; null: megatron-core's choice."
    )
    overlap_p2p: bool = Field(
        True, description="Send between stages while computing (interleaved 1F1B only; false sends and waits)."
    )
    tp_comm_overlap: bool = Field(
        False,
        description="Move tensor-parallel parts while multiplying, through Transformer Engine's user buffers (te only; "
        "needs sequence_parallel).",
    )


class OptimizerConfig(Section):
    """AdamW, with the report's values. Biases and norms are not decayed."""

    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay.")
    adam_beta1: Fraction = Field(0.9, description="Decay of the first moment.")
    adam_beta2: Fraction = Field(0.95, description="Decay of the second moment.")
    adam_eps: float = Field(1e-8, gt=0, description="Constant added to the root of the second moment.")
    clip_grad: float = Field(1.0, ge=0, description="Global gradient norm above which gradients are scaled; 0: off.")


class ScheduleConfig(Section):
    """The learning rate as a pure function of consumed tokens."""

    style: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = Field(
        "cosine", description="Shape after the warm-up (inverse_sqrt: lr times the root of warmup_tokens / tokens)."
    )
    lr: float = Field(description="Peak learning rate.", gt=0)
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the decay.")
    warmup_tokens: TokenCount = Field(0, description="Tokens of the linear warm-up from warmup_start_lr to lr.")
    warmup_start_lr: float = Field(0.0, ge=0, description="Learning rate at token 0.")
    decay_tokens: TokenCount | None = Field(
        None, description="Consumed tokens at which min_lr is reached, warm-up included; null: train.tokens."
    )
    wsd_decay_tokens: TokenCount = Field(
        0, description="wsd only: tokens of the final decay, which ends at decay_tokens; before it the rate is lr."
    )
    wsd_decay_style: Literal["linear", "cosine", "sqrt", "exponential", "halving"] = Field(
        "linear",
        description="wsd only: shape of the final decay (sqrt: 1 - sqrt of the fraction u done; exponential: by equal "
        "factors; halving: 2^(1 - u) - 1, which Megatron-LM calls exponential).",
    )


class SessionConfig(Section):
    """One stage of a run: its own budget, mixture and schedule. Sessions follow one another in one run folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$", description="Name in logs and reports, as stage-1a.")
    tokens: TokenCount = Field(
        gt=0, description="Token budget of the session; it ends with the first step that reaches it."
    )
    weights: dict[str, Annotated[float, Field(ge=0)] | Ramp] | None = Field(
        None,
        description="Mixture: a weight, or a ramp over the session, by the name of a source of data.train; "
        "sources left out give nothing. null: the weights that stand at the sources.",
    )
    schedule: ScheduleConfig | None = Field(
        None, description="Learning rate, its tokens counted from the session's start; null: the recipe's schedule."
    )
    start: Literal["everything", "weights"] = Field(
        "everything",
        description="What is taken over from the session before: everything, or the weights alone (the optimizer's "
        "moments begin at zero).",
    )


class BatchRampup(Section):
    """The global batch grows in equal steps from start_size to train.global_batch_size."""

    start_size: Positive = Field(description="First global batch size, in sequences.")
    increment: Positive = Field(description="Growth per stage, in sequences.")
    tokens: TokenCount = Field(description="Consumed tokens over which the batch grows to its full size.")


class TrainConfig(Section):
    """The run itself."""

    run_dir: FilePath = Field(description="Folder of the run: config, metrics, logs, checkpoints, report.")
    tokens: TokenCount = Field(
        description="Token budget; the run ends with the first step that reaches it. With sessions it is their sum "
        "and may be left out."
    )
    global_batch_size: Positive = Field(description="Sequences per step, over all ranks.")
    micro_batch_size: Positive = Field(1, description="Sequences per forward pass of one rank.")
    batch_rampup: BatchRampup | None = Field(None, description="Growth of the global batch at the run's start.")
    session: str | None = Field(
        None, description="Train only this session of the recipe, and stop at its end; null: all that are left."
    )
    max_steps: Positive | None = Field(
        None, description="Stop, with a checkpoint, after this step even if the budget is not met; null: no limit."
    )
    seed: int = Field(1234, ge=0, description="Seed of the initial weights and of dropout.")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="Activations recomputed in the backward pass: none, the attention core, or whole layers."
    )
    recompute_num_layers: Positive = Field(1, description="Layers per recomputed block (full recomputation only).")
    num_threads: int = Field(
        0,
        ge=0,
        description="CPU threads of each process; 0: what OMP_NUM_THREADS says, else the machine's cores divided by "
        "the local processes.",
    )
    gc_interval: Positive | None = Field(
        None,
        description="Collect Python's garbage every this many steps, on all ranks in the same step, and never between; "
        "null: when Python likes, on each rank in another step, which the others wait for.",
    )
