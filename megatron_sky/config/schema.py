"""The recipe: one frozen pydantic model per section, a description with its unit on every field.

A section is handed only to its owner (`model` to the model builder, `data` to the data loader, ...). Nothing here
imports torch, and nothing changes a config once it is built: progress lives in `trainer.state.TrainState`.
"""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from megatron_sky.config.presets import PRESETS
from megatron_sky.config.units import IntervalField, TokenCount

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
FilePath = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the home


def _without_ending(path: str) -> str:
    """The prefix of a pair, of which either file may be named; what comes out comes out of itself again."""
    prefix = re.sub(r"\.(bin|idx)\Z", "", path)
    if re.search(r"\.(bin|idx)\Z", prefix):
        raise ValueError(f"{prefix!r} ends as a file of a pair does, and can't be told from one; rename the pair")
    return prefix


PairPrefix = Annotated[FilePath, AfterValidator(_without_ending)]


class Section(BaseModel):
    """A part of the recipe: frozen, and any key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


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
    vocab_size: Positive = Field(
        description="True vocabulary size of the tokenizer, in tokens; padding is not counted."
    )
    hidden_size: Positive = Field(description="Width of the residual stream.")
    ffn_hidden_size: Positive = Field(description="Inner width of the feed-forward layer (of each half for SwiGLU).")
    num_layers: Positive = Field(description="Number of transformer layers.")
    num_attention_heads: Positive = Field(description="Number of query heads.")
    num_query_groups: Positive | None = Field(
        None, description="Number of key/value heads (grouped-query attention); null: one per query head."
    )
    kv_channels: Positive | None = Field(
        None, description="Width of one attention head; null: hidden_size / num_attention_heads."
    )
    seq_length: Positive = Field(4096, description="Context length, in tokens.")
    position_embedding: Literal["rope", "learned_absolute"] = Field("rope", description="How positions are encoded.")
    rotary_base: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies (RoPE theta).")
    rope_scaling: RopeScaling | None = Field(
        None, description="Stretching of rotary positions to a longer context; null: none."
    )
    normalization: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="Kind of the pre-norms.")
    norm_epsilon: float = Field(1e-6, gt=0, description="Constant added to the variance in a norm.")
    activation: Literal["swiglu", "gelu"] = Field("swiglu", description="Feed-forward activation.")
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
    vocab_multiple: Positive = Field(
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


class TokenizerConfig(Section):
    """The tokenizer that made the data files; needed to generate text and to check the data against."""

    path: FilePath | None = Field(
        None,
        description="SentencePiece .model, Hugging Face tokenizer.json or tiktoken .tiktoken file, or a folder that "
        "holds one.",
    )


class Ramp(Section):
    """A weight that moves in a straight line over the run's token budget."""

    start: float = Field(ge=0, description="Weight at the first token.")
    end: float = Field(ge=0, description="Weight at the last token of train.tokens.")


class SourceConfig(Section):
    """One training source of the mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$", description="Name in logs and reports.")
    path: PairPrefix = Field(description="Path prefix of the .bin and .idx files, without the ending.")
    weight: Annotated[float, Field(ge=0)] | Ramp = Field(
        1.0, description="Share of the mixture (weights are normalised to sum to 1), constant or a ramp."
    )


class DataConfig(Section):
    """The training mixture."""

    train: tuple[SourceConfig, ...] = Field((), description="Training sources with their weights.")
    max_epochs: float = Field(
        5.0,
        gt=0,
        description="A source that the plan would repeat more often than this stops the run before it starts.",
    )
    seed: int = Field(1234, ge=0, description="Seed of the order of the samples.")
    num_workers: int = Field(1, ge=0, description="Threads that read batches ahead; the result does not depend on it.")
    prefetch_batches: Positive = Field(4, description="Micro batches read ahead of the step that needs them.")
    document_mask: bool = Field(
        False,
        description="Attention within a document only, positions from 0 in each; off in the Skywork report. In "
        "validation too.",
    )
    mask_document_ends: bool = Field(
        False, description="No loss where the next token belongs to the next document. In validation too."
    )
    sampling: Literal["plan", "megatron"] = Field(
        "plan",
        description="plan: order by arithmetic, nothing built; megatron: the order of megatron-core's GPTDataset and "
        "BlendedDataset, for a run that must reproduce one.",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> "DataConfig":
        names = [source.name for source in self.train]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names must be unique; more than once: {', '.join(twice)}")
        return self


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


class OptimizerConfig(Section):
    """AdamW, with the report's values. Biases and norms are not decayed."""

    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay.")
    adam_beta1: Fraction = Field(0.9, description="Decay of the first moment.")
    adam_beta2: Fraction = Field(0.95, description="Decay of the second moment.")
    adam_eps: float = Field(1e-8, gt=0, description="Constant added to the root of the second moment.")
    clip_grad: float = Field(1.0, ge=0, description="Global gradient norm above which gradients are scaled; 0: off.")


class ScheduleConfig(Section):
    """The learning rate as a pure function of consumed tokens."""

    style: Literal["cosine", "linear", "constant", "wsd"] = Field("cosine", description="Shape after the warm-up.")
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
    wsd_decay_style: Literal["linear", "cosine", "sqrt", "exponential"] = Field(
        "linear", description="wsd only: shape of the final decay (sqrt: 1 - sqrt of the fraction done)."
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
        0, ge=0, description="CPU threads of each process; 0: the machine's cores divided by the local processes."
    )
    gc_interval: Positive | None = Field(
        None,
        description="Collect Python's garbage every this many steps, on all ranks in the same step, and never between; "
        "null: when Python likes, on each rank in another step, which the others wait for.",
    )


class ValidationSet(Section):
    """A named held-out set; its loss is reported on its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$", description="Name in logs and reports.")
    path: PairPrefix = Field(description="Path prefix of the .bin and .idx files, without the ending.")


class ValidationConfig(Section):
    """Losses on named held-out sets, each one distribution."""

    sets: tuple[ValidationSet, ...] = Field((), description="The sets.")
    interval: IntervalField | None = Field(None, description="How often, beside the run's start and end; null: never.")
    at_start: bool = Field(True, description="Also before the first step.")
    micro_batch_size: Positive | None = Field(
        None, description="Sequences per forward pass of one rank; null: train.micro_batch_size."
    )
    max_sequences: Positive | None = Field(
        None, description="Use this many sequences from the start of each set; null: all of them."
    )
    reference_tokenizer: FilePath | None = Field(
        None,
        description="Tokenizer file of the model to compare with: each loss is also given per token of this tokenizer "
        "(normalised loss); null: not given.",
    )
    references: FilePath | None = Field(
        None,
        description="CSV file of other models' losses on the sets, drawn as lines into the same pictures; its columns: "
        "model, domain, loss (nats per token), or normalised_loss (as `eval loss` writes them); null: none.",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> "ValidationConfig":
        names = [each.name for each in self.sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"validation set names must be unique; more than once: {', '.join(twice)}")
        return self


class CheckpointConfig(Section):
    """Saving, and where a run starts from. A run folder that has checkpoints is continued from the last whole one."""

    interval: IntervalField | None = Field(None, description="How often, beside the run's end; null: at the end only.")
    async_save: bool = Field(True, description="Write files while training goes on; false waits for them.")
    keep_last: Positive | None = Field(None, description="Keep this many newest checkpoints; null: all.")
    keep_every_tokens: TokenCount | None = Field(
        None, description="With keep_last: also keep, for ever, the first checkpoint after each multiple of this."
    )
    release_marks: tuple[TokenCount, ...] = Field(
        (), description="Consumed tokens at which a checkpoint is saved and, whatever keep_last says, kept for ever."
    )
    save_optimizer: bool = Field(True, description="Save the optimizer state; without it a run can't be resumed.")
    init_from: FilePath | None = Field(
        None,
        description="Checkpoint folder whose weights (only) a new run starts from; unused once the run has one.",
    )


class ResilienceConfig(Section):
    """What happens when something goes wrong."""

    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="A loss or gradient norm that is not finite: stop the run, skip that update, or go back to the "
        "last checkpoint and step over the samples.",
    )
    on_spike: Literal["ignore", "stop", "skip", "rollback"] = Field(
        "ignore", description="The same for a loss or gradient norm far above those of the steps before it."
    )
    spike_zscore: float = Field(
        10.0, gt=0, description="A spike: this many robust standard deviations above the window's median."
    )
    spike_window: Annotated[int, Field(ge=8)] = Field(64, description="Steps that a spike is measured against.")
    rerun: bool = Field(
        True,
        description="Run a bad step again: numbers that differ are the hardware's fault, the same numbers the data's.",
    )
    max_bad_steps: Positive = Field(10, description="Bad steps of one run that are skipped or rolled back, at most.")
    time_limit_seconds: float | None = Field(
        None, gt=0, description="The job's length, in seconds from its start; null: Slurm's end time, if there is one."
    )
    exit_before_seconds: float = Field(
        300.0, ge=0, description="Save and leave this long before the job's end (see time_limit_seconds)."
    )
    step_timeout_seconds: float = Field(
        1800.0, gt=0, description="A step, validation or save that takes longer is a hang: the job ends."
    )
    startup_timeout_seconds: float = Field(600.0, gt=0, description="Time for all ranks to arrive.")
    straggler_interval: Positive = Field(100, description="Steps between reports of ranks that are slow.")
    straggler_ratio: float = Field(
        1.3, gt=1, description="A rank is slow when its work takes this much longer than the median."
    )


class WandbConfig(Section):
    """Weights & Biases; needs `pip install megatron-sky[wandb]`."""

    project: str = Field(description="Project name.")
    name: str | None = Field(None, description="Run name; null: the run folder's name.")
    mode: Literal["online", "offline"] = Field("online", description="Whether to send while training.")


class MonitorConfig(Section):
    """What is written about the run while it goes on."""

    log_interval: Positive = Field(1, description="Steps between log lines; metrics.jsonl has every step.")
    tensorboard: bool = Field(True, description="Write TensorBoard event files to <run_dir>/tensorboard.")
    wandb: WandbConfig | None = Field(None, description="Weights & Biases; null: off.")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="Peak dense TFLOP/s of one device, for MFU; null: known by the device's name, or no MFU.",
    )


class ProfileConfig(Section):
    """A look at where a step's time and memory go."""

    first_step: Positive | None = Field(None, description="First step that is traced; null: none.")
    num_steps: Positive = Field(3, description="Steps that are traced, one after the other.")
    ranks: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), description="Ranks that write a trace.")
    memory_snapshot: bool = Field(
        False, description="Record allocations, and write them out when a GPU runs out of memory (a few % slower)."
    )


class Config(Section):
    """A whole recipe."""

    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    kernels: KernelsConfig = KernelsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    train: TrainConfig
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    profile: ProfileConfig = ProfileConfig()
    resilience: ResilienceConfig = ResilienceConfig()
    sessions: tuple[SessionConfig, ...] = Field(
        (), description="Stages of the run, in order; none: one of train.tokens."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_sessions(cls, given: object) -> object:
        """Budget and schedule of a run in sessions need not be said twice."""
        sessions = given.get("sessions") if isinstance(given, dict) else None
        if not isinstance(sessions, list | tuple) or not sessions:
            return given
        try:
            parts = [SessionConfig.model_validate(each) for each in sessions]
        except ValidationError:
            return given  # told by the field's own validator
        filled = dict(given)
        if isinstance(given.get("train"), dict):
            filled["train"] = {"tokens": sum(part.tokens for part in parts)} | given["train"]
        if given.get("schedule") is None and parts[0].schedule is not None:
            filled["schedule"] = parts[0].schedule
        return filled

    @model_validator(mode="after")
    def _sessions_agree(self) -> "Config":
        if not self.sessions:
            if self.train.session is not None:
                raise ValueError(f"train.session = {self.train.session!r}: the recipe has no sessions")
            return self
        names = [each.name for each in self.sessions]
        wrong = [
            f"sessions: the name {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
        ]
        total = sum(each.tokens for each in self.sessions)
        if self.train.tokens != total:
            wrong.append(
                f"train.tokens = {self.train.tokens:,}: must be the sum of the sessions, {total:,}; leave it out"
            )
        if self.train.session is not None and self.train.session not in names:
            wrong.append(f"train.session = {self.train.session!r}: the sessions are {', '.join(names)}")
        if all(each.schedule for each in self.sessions) and self.schedule != self.sessions[0].schedule:
            wrong.append("schedule: has no effect, every session has its own; change sessions.NAME.schedule")
        sources = [source.name for source in self.data.train]
        for each in self.sessions:
            unknown = sorted(set(each.weights or ()) - set(sources))
            if unknown:
                wrong.append(
                    f"sessions.{each.name}.weights: {', '.join(unknown)} is no source of data.train "
                    f"({', '.join(sources) or 'which is empty'})"
                )
        if self.data.sampling == "megatron" and len(self.sessions) > 1:
            wrong.append("data.sampling: megatron has one blend for the whole run; use plan with sessions")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def json_schema() -> dict:
    """The recipe's JSON schema, for editors that complete and check YAML."""
    return Config.model_json_schema()
