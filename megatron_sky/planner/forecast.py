"""A job's forecast: memory, step and speed, and what the token budget costs in days, GPU-hours and energy."""

from dataclasses import dataclass
from functools import cached_property

from megatron_sky.model.flops import flops_per_token, lora_parameters, num_parameters
from megatron_sky.planner import hardware
from megatron_sky.planner.job import Job
from megatron_sky.planner.memory import GIB, Memory, stage_memory
from megatron_sky.planner.speed import Step, step_seconds, tokens_per_second_per_gpu


@dataclass(frozen=True)
class Forecast:
    """All that is predicted of a job; computed when asked for."""

    job: Job

    @cached_property
    def stages(self) -> list[Memory]:
        """The peak memory of a GPU of each pipeline stage."""
        return [stage_memory(self.job, stage) for stage in range(self.job.layout.pp_size)]

    @cached_property
    def memory(self) -> Memory:
        """Of the stage that needs most."""
        return max(self.stages, key=lambda stage: stage.total)

    @cached_property
    def step(self) -> Step:
        return step_seconds(self.job)

    @property
    def fits(self) -> bool:
        return self.memory.total <= usable_bytes(self.job)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        return tokens_per_second_per_gpu(self.job, self.step)

    def mfu(self) -> float:
        """As the program and the Skywork report count: 6 N + 12 L h s FLOPs a token (`model.flops`), of the
        peak in 16 bits."""
        return self.tokens_per_second_per_gpu * flops_per_token(self.job.model, self.job.lora) / self._peak()

    def causal_mfu(self) -> float:
        """Only what must be computed: half of the attention scores, and no product for the input embedding.

        6 (N - V h) + 6 L h s FLOPs a token (for tied embeddings N holds V h once, and it is multiplied).
        """
        m = self.job.model
        looked_up = 0 if m.tie_embeddings else m.vocab_size * m.hidden_size
        if m.position_embedding == "learned_absolute":
            looked_up += m.seq_length * m.hidden_size
        attention = 6.0 * m.num_layers * m.num_attention_heads * m.head_size * m.seq_length
        lora = self.job.lora
        adapters = 0.0 if lora is None else 6.0 * lora_parameters(m, lora)
        flops = (6.0 if lora is None else 4.0) * (num_parameters(m) - looked_up) + adapters + attention
        return self.tokens_per_second_per_gpu * flops / self._peak()

    def _peak(self) -> float:
        """The GPU's in 16 bits; of a measured machine, its fastest product in the recipe's format."""
        if self.job.rates is not None:
            return self.job.rates.peak(self.job.dtype)
        return self.job.cluster.gpu.peak("bf16")

    def days(self, tokens: int) -> float:
        """To train on `tokens`, without interruptions."""
        return tokens / (self.tokens_per_second_per_gpu * self.job.layout.world_size) / 86_400

    def gpu_hours(self, tokens: int) -> float:
        return tokens / self.tokens_per_second_per_gpu / 3600

    def kwh(self, tokens: int) -> float | None:
        """Of the GPUs at their power limit with their share of the nodes; not of storage, network switches, cooling.

        None: the power limit is not known."""
        watts = self.job.cluster.gpu.watts
        factor = hardware.coefficients()["node_power_factor"]
        return None if watts is None else self.gpu_hours(tokens) * watts * factor / 1000


def usable_bytes(job: Job) -> float:
    """Of a GPU's memory, what a program can have."""
    return job.cluster.memory_gib(job.layout.world_size) * GIB * hardware.coefficients()["usable_memory"]
