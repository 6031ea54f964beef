"""What a rehearsal found out about one rank, as plain values: counted, not estimated."""

from dataclasses import asdict, dataclass, field

WEIGHTS, GRADIENTS, OPTIMIZER, OTHER = "weights", "gradients", "optimizer", "other"
ACTIVATIONS, LOGITS, COMMUNICATION, UPDATE = "activations", "logits", "communication", "update"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, COMMUNICATION, UPDATE, OTHER)
"""What memory holds. `activations`: what forward and backward make and is none of the following; `logits`: what has the
vocabulary's width; `communication`: what collectives and transfers fill; `update`: what an update needs for its moment;
`other`: what is kept all along and is none of the first three (rotary angles, 8-bit scales and copies of weights,
workspaces)."""


@dataclass(frozen=True)
class Operation:
    """One kind of product or attention in a training step.

    Attributes:
        operator: torch's name, as `mm`.
        shape: `(m, n, k)` of a product, with a leading batch for a batched one; `(b, heads, queries, keys, head size)`
            of attention.
        calls, flops: in the whole step, all micro batches. A multiplication and an addition are two; attention's causal
            half is not discounted.
    """

    operator: str
    shape: tuple[int, ...]
    dtype: str
    calls: int
    flops: int


@dataclass(frozen=True)
class Traffic:
    """What one kind of collective moves in a training step.

    Attributes:
        collective: torch's name; `send` and `receive` between pipeline stages.
        group: TP, CP, DP, PP ... (`ParallelContext.group_names`).
        bytes: of the whole tensor: what is summed, or put together, or sent.
    """

    collective: str
    group: str
    group_size: int
    calls: int
    bytes: int


@dataclass(frozen=True)
class Wait:
    """Where the CPU waits in a step for what the GPU still computes.

    Attributes:
        line: of this package, as `megatron_sky/trainer/step.py:99`.
        why: what the GPU is waited for.
        calls: in the step.
    """

    line: str
    why: str
    calls: int


@dataclass(frozen=True)
class Rehearsal:
    """One rank's training step and validation.

    Attributes:
        stage: pipeline stage of the rank.
        backend: torch, or te for Transformer Engine.
        parameters: that the rank holds.
        num_microbatches: of a step; `rehearsed_microbatches` of them were run, which is enough for the largest number
            that is in flight. Operations and traffic are the whole step's.
        state: bytes held between two steps, by part: weights, gradients, optimizer, other.
        peak_bytes: the most that is held at once, and `peak_phase`, where; `peak_by_part` what it is made of.
        peak_by_operator: what the activations, logits and buffers at the peak were made by, as bytes.
        peaks: the most that is held in each phase.
        waits: for the GPU, in the step outside forward and backward, where one would be the rehearsal's failure.
        seconds: that the rehearsal took.
    """

    world_size: int
    rank: int
    stage: int
    layout: str
    backend: str
    parameters: int
    num_microbatches: int
    rehearsed_microbatches: int
    state: dict[str, int]
    peak_bytes: int
    peak_phase: str
    peak_by_part: dict[str, int]
    peak_by_operator: dict[str, int]
    peaks: dict[str, int]
    operations: tuple[Operation, ...] = field(repr=False)
    traffic: tuple[Traffic, ...] = field(repr=False)
    waits: tuple[Wait, ...] = ()
    seconds: float = 0.0

    @property
    def flops(self) -> dict[str, int]:
        """Operations of the step by operator."""
        total: dict[str, int] = {}
        for operation in self.operations:
            total[operation.operator] = total.get(operation.operator, 0) + operation.flops
        return total

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self) | {"flops": self.flops}
