"""Bytes that one GPU of each pipeline stage holds at its peak, by part.

Weights, gradients and optimizer are the buffers' sizes. Activations are what autograd keeps for the backward pass,
operator by operator (Korthikanti et al. 2022, arXiv 2205.05198, section 4, written for this program's operators), for
as many micro batches as are in flight. What the framework takes beside is in the coefficients.
"""

from dataclasses import dataclass, fields

from megatron_sky.planner import hardware
from megatron_sky.planner.job import Job
from megatron_sky.planner.parameters import layer_parameters, stage_parameters, trained_parameters

GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage's GPU at its peak."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    working: float
    """Of the operator that runs at the peak."""
    collectives: float
    """Full-sized inputs and outputs of collectives that the allocator has not had back."""
    reserve: float
    """CUDA's context, communicators, workspaces."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer


def stage_memory(job: Job, stage: int) -> Memory:
    """The peak of a GPU of this stage."""
    weights, gradients, optimizer = state_bytes(job, stage)
    kept, logits, working = _kept(job, stage), 0.0, _working(job, stage)
    if stage == job.layout.pp_size - 1:  # its peak is with the logits, or behind them in the last layers' backward pass
        logits, ended = _logits(job), 2 * _hidden(job)
        kept, logits, working = (kept, logits, 0.0) if logits + ended >= working else (kept - ended, 0.0, working)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=kept,
        logits=logits,
        working=working,
        collectives=_collective_buffers(job, stage),
        reserve=_reserve(job),
    )


def _kept(job: Job, stage: int) -> float:
    """Activations of all passes in flight: of the layers, each chunk's output (pipeline outputs are not let go of), and
    what stages have sent or received and not used yet. The last stage's final norm keeps its output."""
    pp, vpp = job.layout.pp_size, job.layout.vpp_size
    in_flight, hidden = job.chunks_in_flight(stage), _hidden(job)
    kept = in_flight * (layer_activations(job) * job.stage_layers(stage) / vpp + hidden)
    if stage == pp - 1:
        kept += hidden
    if pp > 1 and vpp == 1:
        kept += hidden * (1 if stage == 0 else 2)
    elif pp > 1:  # counted in rehearsals: interleaved stages send and receive ahead
        kept += hidden * (vpp + 2.5 if stage == 0 else 4.7)
    if stage == 0 and job.model.hidden_dropout > 0:
        kept += 1.5 * hidden * in_flight  # the embedding's dropout: what it gives, and its mask
    if job.sequence_parallel:
        kept += hidden * job.layout.tp_size  # megatron-core's one buffer for gathered inputs
    return kept


def _reserve(job: Job) -> float:
    rates, usual = job.rates, hardware.coefficients()["framework_reserve_gib"] * GIB
    return rates.reserve_gib * GIB if rates is not None and job.cluster.gpu.shared else usual


def peak_memory(job: Job) -> Memory:
    """Of the stage that needs most."""
    stages = range(job.layout.pp_size) if job.layout.pp_size < 4 else (0, 1, job.layout.pp_size - 1)
    return max((stage_memory(job, stage) for stage in stages), key=lambda each: each.total)


def state_bytes(job: Job, stage: int) -> tuple[float, float, float]:
    """(weights, gradients, optimizer state) of one GPU.

    16-bit training keeps 2 bytes a weight, 4 a gradient (2 without grad_reduce_in_fp32), and 12 for master weight and
    two moments; fp32 keeps 4, 4 and 8. ZeRO shards the optimizer (1), the gradients (2) and the weights (3) over the
    data-parallel ranks (Rajbhandari et al. 2019, arXiv 1910.02054). Weights beneath adapters are held alone.
    """
    trained, dp = trained_parameters(job, stage), job.layout.dp_size * job.layout.cp_size
    count = stage_parameters(job, stage) + (trained if job.lora is not None else 0)
    weight, gradient, state = (4, 4, 8) if job.dtype == "fp32" else (2, 4 if job.grads_in_fp32 else 2, 12)
    level = {"none": 0, "zero1": 1, "zero2": 2, "zero3": 3}[job.sharding]
    return (
        count * weight / (dp if level >= 3 else 1),
        trained * gradient / (dp if level >= 2 else 1),
        trained * state / (dp if level >= 1 else 1),
    )


def layer_activations(job: Job, whole: bool = False) -> float:
    """Bytes that one layer keeps of one micro batch; `whole`: as if nothing were recomputed.

    Every tensor is `[s, b, width]`. Two norms keep their inputs (the residual stream) and their outputs are kept by the
    linears behind them; attention keeps the product of the qkv linear, the rotated q and k, and its output; the
    feed-forward layer its products and what goes into the last linear. With sequence parallelism everything is split
    over the tensor-parallel ranks, without it the h-wide tensors of the residual stream are whole.
    """
    m, t, tp = job.model, job.tokens, job.layout.tp_size
    element, h, f = job.element, m.hidden_size, m.ffn_hidden_size
    stream = h / (tp if job.sequence_parallel else 1)
    if job.recompute == "full" and not whole:
        return t * stream * element / job.recompute_num_layers
    q = m.num_attention_heads * m.head_size
    narrow = element if job.product_format == "none" or job.backend == "torch" else 1
    per_token = 2 * stream * (element + narrow)
    rope = m.position_embedding == "rope"
    per_token += _attention_operands(job)
    per_token += q / tp * narrow
    gate = 2 if m.activation == "swiglu" else 1
    per_token += gate * f / tp * element + f / tp * narrow
    if m.hidden_dropout > 0:
        per_token += 4 * stream
    per_token += 8  # one number a row of each norm, fp32
    per_token += 4 * m.num_attention_heads / tp  # flash attention's log-sum-exp
    if rope and job.backend == "torch":
        per_token += 4 * m.head_size * element / job.micro_batch_size  # cosines and sines of q and k
    if job.attention == "unfused" and (job.recompute == "none" or whole):
        dropout = 3 if m.attention_dropout > 0 else 0
        per_token += (element + dropout) * m.num_attention_heads / tp * m.seq_length
    return t * per_token


def _attention_operands(job: Job) -> float:
    """Bytes a token that attention keeps of queries, keys, values and mask, and of its result beside the next linear's
    input.

    The product of the qkv linear stays for the values' sake, beside the rotated queries and keys. On the torch backend
    a context-parallel rank has instead its rotated queries, the whole sequence's keys and values, and the results of
    its two chunks, which are joined; documents' bounds ask for rows one behind another, which with more than one are
    copies; and where a mask keeps documents apart, each chunk has one to its own end.
    """
    m, cp, tp = job.model, job.layout.cp_size, job.layout.tp_size
    q, kv = m.num_attention_heads * m.head_size, m.query_groups * m.head_size
    rope = m.position_embedding == "rope"
    torch = job.backend == "torch"
    masked = torch and job.document_mask and not takes_bounds(job)
    if torch and cp > 1:
        keys = (2 * cp + 1) / 2 * q if masked and q != kv else cp * kv
        width = 2 * q + 2 * keys
    elif torch and job.document_mask and not masked and job.micro_batch_size > 1:
        width = 2 * q + 2 * kv
    else:
        width = (q + 2 * kv) + (q + kv if rope else 0)
    seen = m.seq_length * ((2 * cp + 1) / (4 * cp) if cp > 1 else 1) if masked else 0
    return (width / tp + seen) * job.element


def takes_bounds(job: Job) -> bool:
    """Whether a GPU's flash attention keeps documents apart by their bounds, with no mask, on the torch backend."""
    size = job.model.head_size
    return job.layout.cp_size == 1 and job.dtype != "fp32" and size % 8 == 0 and size <= 256


def _hidden(job: Job) -> float:
    """Bytes of one micro batch's residual stream on one rank."""
    width = job.model.hidden_size / (job.layout.tp_size if job.sequence_parallel else 1)
    return job.tokens * width * job.element


def _logits(job: Job) -> float:
    """The output layer's product in the model's format, and the cross-entropy's in fp32; scaled once more in fp16."""
    width = {"bf16": 2 + 4, "fp16": 2 + 4 + 2, "fp32": 4 + 4 + 2}[job.dtype]
    return job.tokens * job.model.padded_vocab_size / job.layout.tp_size * width


def _working(job: Job, stage: int) -> float:
    """The gradient of the feed-forward layer's inner product in the backward pass. With full recomputation, the layers
    of a block too."""
    m, gate = job.model, 2 if job.model.activation == "swiglu" else 1
    gradient = job.tokens * m.ffn_hidden_size * gate / job.layout.tp_size * job.element
    if job.recompute != "full":
        return gradient
    block = min(job.recompute_num_layers, job.stage_layers(stage))
    return gradient + layer_activations(job, whole=True) * block


def _collective_buffers(job: Job, stage: int) -> float:
    """What collectives hold beside the activations; ZeRO-3 gathers the weights of two layers and reduces one's
    gradients."""
    held = 0.0
    if job.sequence_parallel:
        whole = job.tokens * job.model.hidden_size * job.element
        held += hardware.coefficients()["held_collective_buffers_per_layer"] * whole * job.stage_layers(stage)
    if job.sharding == "zero3":
        held += layer_parameters(job) * (2 * job.element + 4)
    return held
