"""What surrounds a run: checkpoints, faults, records of it, profiles."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_sky.config.sections.base import FilePath, Line, Positive, Section
from megatron_sky.config.units import IntervalField, TokenCount


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
    start_over: bool = Field(
        False, description="Begin at the first step although the run had checkpoints, which are gone."
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

    project: Line = Field(description="Project name.")
    name: Line | None = Field(None, description="Run name; null: the run folder's name.")
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
