"""The recipe: one frozen pydantic model per section, a description with its unit on every field (`sections/`).

A section is handed only to its owner (`model` to the model builder, `data` to the data loader, ...). Nothing here
imports torch, and nothing changes a config once it is built: progress lives in `trainer.state.TrainState`.
"""

from pydantic import Field, ValidationError, model_validator

from megatron_sky.config.sections.base import Section
from megatron_sky.config.sections.data import (
    DataConfig,
    MegatronOrder,
    Ramp,
    SourceConfig,
    TokenizerConfig,
    ValidationConfig,
    ValidationSet,
)
from megatron_sky.config.sections.finetune import DpoConfig, FinetuneConfig, LoraConfig
from megatron_sky.config.sections.model import (
    Fp8Config,
    KernelsConfig,
    ModelConfig,
    PrecisionConfig,
    RopeScaling,
)
from megatron_sky.config.sections.operations import (
    CheckpointConfig,
    MonitorConfig,
    ProfileConfig,
    ResilienceConfig,
    WandbConfig,
)
from megatron_sky.config.sections.training import (
    BatchRampup,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    SessionConfig,
    TrainConfig,
)
from megatron_sky.records import more_than_once

__all__ = [
    "BatchRampup",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DpoConfig",
    "FinetuneConfig",
    "Fp8Config",
    "KernelsConfig",
    "LoraConfig",
    "MegatronOrder",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "ProfileConfig",
    "Ramp",
    "ResilienceConfig",
    "RopeScaling",
    "ScheduleConfig",
    "Section",
    "SessionConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "ValidationConfig",
    "ValidationSet",
    "WandbConfig",
    "json_schema",
]


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
    finetune: FinetuneConfig | None = Field(None, description="Begin with a trained model; null: with drawn weights.")
    sessions: tuple[SessionConfig, ...] = Field(
        (), description="Stages of the run, in order; none: one of train.tokens."
    )

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that alone are trained; None: all weights are."""
        return self.finetune.lora if self.finetune is not None else None

    @property
    def learns_preference(self) -> bool:
        """Whether the data are pairs of answers, one of them preferred."""
        return self.finetune is not None and self.finetune.dpo is not None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_sessions(cls, given: object) -> object:
        """Budget and schedule of a run in sessions need not be said twice."""
        if not isinstance(given, dict):
            return given
        sessions = given.get("sessions")
        if not isinstance(sessions, list | tuple) or not sessions:
            return given
        try:
            parts = [SessionConfig.model_validate(session) for session in sessions]
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
        names = [session.name for session in self.sessions]
        wrong = [f"sessions: the name {name!r} is given twice" for name in more_than_once(names)]
        total = sum(session.tokens for session in self.sessions)
        if self.train.tokens != total:
            wrong.append(
                f"train.tokens = {self.train.tokens:,}: must be the sum of the sessions, {total:,}; leave it out"
            )
        if self.train.session is not None and self.train.session not in names:
            wrong.append(f"train.session = {self.train.session!r}: the sessions are {', '.join(names)}")
        if all(session.schedule for session in self.sessions) and self.schedule != self.sessions[0].schedule:
            wrong.append("schedule: has no effect, every session has its own; change sessions.NAME.schedule")
        sources = [source.name for source in self.data.train]
        for session in self.sessions:
            unknown = sorted(set(session.weights or ()) - set(sources))
            if unknown:
                wrong.append(
                    f"sessions.{session.name}.weights: {', '.join(unknown)} is no source of data.train "
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
