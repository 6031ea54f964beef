"""Seconds of a training step, by part.

The steady state of 1F1B runs at the pace of the slowest stage; filling and draining the pipeline costs one forward and
backward pass of each other stage (Narayanan et al. 2021, arXiv 2104.04473, section 2.2), a `vpp_size`-th of it where
chunks are interleaved. Around it: reducing gradients, the update, gathering weights, and what the host does once a
step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from megatron_sky.planner import collectives, hardware, kernels, measured_speed
from megatron_sky.planner.collectives import Group
from megatron_sky.planner.job import Job
from megatron_sky.planner.parameters import embedding_parameters, layer_parameters, most_trained, trained_parameters


@dataclass(frozen=True)
class Seconds:
    """Of a pass, by what is done."""

    products: float = 0.0
    attention: float = 0.0
    memory_kernels: float = 0.0
    tensor_parallel: float = 0.0
    context_parallel: float = 0.0
    weights: float = 0.0
    """Gathering sharded weights and reducing their gradients in each micro batch (ZeRO-2 and 3)."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


@dataclass(frozen=True)
class Step:
    """A step's seconds on the slowest stage, by part; `total` is their sum."""

    forward: Seconds
    backward: Seconds
    recompute: Seconds
    """The three above: of one micro batch of the mean stage, times the number of micro batches."""
    imbalance: float
    """Embedding and output layer: what the slowest stage needs beyond the mean one."""
    bubble: float
    p2p: float
    data_parallel: float
    """Reduction of gradients and gathering of weights that nothing hides."""
    optimizer: float
    host: float

    @property
    def total(self) -> float:
        passes = self.forward.total + self.backward.total + self.recompute.total
        rest = self.imbalance + self.bubble + self.p2p + self.data_parallel + self.optimizer + self.host
        return passes + rest

    def parts(self) -> Mapping[str, float]:
        """Every part by name, in the order in which they are told."""
        named = {
            field.name: getattr(self.forward, field.name) + getattr(self.backward, field.name)
            for field in fields(Seconds)
        }
        rest = ("imbalance", "bubble", "p2p", "data_parallel", "optimizer", "host")
        return named | {"recompute": self.recompute.total} | {name: getattr(self, name) for name in rest}


def step_seconds(job: Job, c: hardware.Coefficients | None = None) -> Step:
    """The step's seconds, predicted."""
    c = (c or hardware.coefficients()).on(job.cluster.gpu)
    pp, vpp, micro = job.layout.pp_size, job.layout.vpp_size, job.num_microbatches
    forward, backward = layer_seconds(job, c)
    again = _recomputed(job, forward, c)
    layer = forward.total + backward.total + again.total
    first, last = embedding_seconds(job, c), head_seconds(job, c)
    stages = [job.stage_layers(stage) * layer for stage in range(pp)]
    stages[0] += first.total
    stages[-1] += last.total
    slowest, mean = max(stages), sum(stages) / pp
    layers = job.model.num_layers / pp
    forward, backward, again = forward * layers, backward * layers, again * layers
    p2p = _p2p(job, c)
    share = (first + last) * (1 / pp)
    gradients, weights = _data_parallel(job, forward.total, backward.total, c)
    return Step(
        forward=(forward + share * (1 / 3)) * micro,
        backward=(backward + share * (2 / 3)) * micro,
        recompute=again * micro,
        imbalance=(slowest - mean) * micro,
        bubble=(pp - 1) * mean / vpp,
        p2p=p2p * (micro * vpp if vpp > 1 else micro) + 2 * (pp - 1) * p2p / 4,
        data_parallel=gradients + weights,
        optimizer=_optimizer(job, c),
        host=c["host_step_s"] if job.rates is None else measured_speed.host(job, job.rates),
    )


def pass_seconds(job: Job, c: hardware.Coefficients) -> tuple[list[float], list[float], float]:
    """(forward, backward) seconds of one micro batch on each stage, and those of a send between two."""
    pp, c = job.layout.pp_size, c.on(job.cluster.gpu)
    one_forward, one_backward = layer_seconds(job, c)
    again = _recomputed(job, one_forward, c)
    first, last = embedding_seconds(job, c).total, head_seconds(job, c).total
    forward, backward = [], []
    for stage in range(pp):
        layers, end = job.stage_layers(stage), first * (stage == 0) + last * (stage == pp - 1)
        forward.append(layers * one_forward.total + end / 3)
        backward.append(layers * (one_backward.total + again.total) + end * 2 / 3)
    return forward, backward, _p2p(job, c) / 2


def tokens_per_second_per_gpu(job: Job, step: Step) -> float:
    tokens = job.num_microbatches * job.micro_batch_size * job.layout.dp_size * job.model.seq_length
    return tokens / step.total / job.layout.world_size


def layer_seconds(job: Job, c: hardware.Coefficients) -> tuple[Seconds, Seconds]:
    """(forward, backward) of one layer on one micro batch."""
    forward_tp, backward_tp = _tensor_parallel(job, c)
    cp = _context_parallel(job, c)
    if job.rates is not None:
        one, other = measured_speed.layer_passes(job, job.rates, linears(job))
        return (
            Seconds(one.products, one.attention, one.memory_kernels, forward_tp + one.wait_tp, cp + one.wait_cp),
            Seconds(
                other.products, other.attention, other.memory_kernels, backward_tp + other.wait_tp, cp + other.wait_cp
            ),
        )
    gpu, t = job.cluster.gpu, job.tokens
    forward_products = backward_products = 0.0
    kind = job.dtype if job.product_format == "none" else job.product_format
    for n, k in linears(job):
        forward_products += kernels.matmul(t, n, k, kind, gpu, c)
        backward_products += kernels.matmul(t, k, n, kind, gpu, c)
        backward_products += kernels.matmul(n, k, t, kind, gpu, c) if job.lora is None else 0.0
    forward_attention, backward_attention = _attention(job, c)
    forward_bytes, backward_bytes = _moved(job, c)
    gathered = _sharded_weights(job, forward_products, backward_products, c)
    count = c["small_kernels_per_layer"]
    forward = Seconds(
        forward_products, forward_attention, kernels.memory(forward_bytes, gpu, c, count), forward_tp, cp, gathered[0]
    )
    backward = Seconds(
        backward_products,
        backward_attention,
        kernels.memory(backward_bytes, gpu, c, 2 * count),
        backward_tp,
        cp,
        gathered[1],
    )
    return forward, backward


def linears(job: Job) -> list[tuple[float, float]]:
    """(columns, rows) of the products of a layer on one rank."""
    m, tp = job.model, job.layout.tp_size
    q, kv = m.num_attention_heads * m.head_size, 2 * m.query_groups * m.head_size
    f1 = m.ffn_hidden_size * (2 if m.activation == "swiglu" else 1)
    h = m.hidden_size
    return [((q + kv) / tp, h), (h, q / tp), (f1 / tp, h), (h, m.ffn_hidden_size / tp)]


def _attention(job: Job, c: hardware.Coefficients) -> tuple[float, float]:
    m, heads = job.model, job.model.num_attention_heads / job.layout.tp_size
    gpu = job.cluster.gpu
    if job.attention == "unfused":
        dropout = m.attention_dropout > 0
        return kernels.unfused_attention(job.tokens, m.seq_length, heads, m.head_size, dropout, gpu, c)
    return kernels.flash_attention(job.tokens, m.seq_length, heads, m.head_size, gpu, c)


def _moved(job: Job, c: hardware.Coefficients) -> tuple[float, float]:
    """(forward, backward) bytes of the kernels that only move memory, of one layer on one micro batch.

    In widths of a token: a norm reads and writes h (backward reads two, writes one), a residual addition reads two and
    writes one; SwiGLU reads 2 f and writes f, backward reads 3 f and writes 2 f; GELU reads and writes f, backward
    reads two and writes one; rotary positions in separate kernels go through q and k ten times; without Transformer
    Engine's fused kernels all of that grows by `eager_traffic`. FP8 reads each input of a product and writes it in 8
    bits twice, plain and transposed. Weight gradients are added to fp32 once a micro batch: read and written, 8 bytes a
    parameter, and 4 more where the product does not do it.
    """
    m, t, tp, e = job.model, job.tokens, job.layout.tp_size, job.element
    stream = m.hidden_size / (tp if job.sequence_parallel else 1)
    q, kv = m.num_attention_heads * m.head_size / tp, 2 * m.query_groups * m.head_size / tp
    f = m.ffn_hidden_size / tp
    gated = m.activation == "swiglu"
    rope = 20 * (q + kv / 2) * (c["fused_rope"] if job.fused_rope else 1) if m.position_embedding == "rope" else 0
    forward = 2 * 2 * stream + 2 * 3 * stream + rope + (3 if gated else 2) * f
    backward = 2 * 3 * stream + 2 * 2 * stream + rope + (5 if gated else 3) * f
    f1 = f * (2 if gated else 1)
    eager = 1.0 if job.backend == "te" else c["eager_traffic"]
    forward, backward = forward * e * eager, backward * e * eager
    if job.product_format != "none":
        forward += 4 * (2 * m.hidden_size + q + f)
        backward += 4 * (2 * m.hidden_size + q + kv + f1)
    if m.hidden_dropout > 0:
        forward, backward = forward + 2 * stream, backward + 2 * stream
    accumulated = layer_parameters(job) * (8 if job.fused_gradient_sums else 12)
    return forward * t, backward * t + accumulated


def _tensor_parallel(job: Job, c: hardware.Coefficients) -> tuple[float, float]:
    """(forward, backward) of one layer: two all-reduces each way, or with sequence parallelism two all-gathers and two
    reduce-scatters, in backward two all-gathers more, which run beside the products (Korthikanti et al. 2022, section
    4.2.2). The backward all-reduces run beside the products of the weights."""
    if job.layout.tp_size == 1:
        return 0.0, 0.0
    one = 2 * _one_all_reduce(job, c)
    if job.overlap_tp:
        return one * (1 - c["tp_overlap"]), one * (1 - c["tp_overlap"])
    return one, one * (1 - c["tp_backward_overlap"])


def _one_all_reduce(job: Job, c: hardware.Coefficients) -> float:
    """Of one micro batch's residual stream, or a reduce-scatter and an all-gather of it."""
    if job.layout.tp_size == 1:
        return 0.0
    size = job.tokens * job.model.hidden_size * job.element
    seconds = collectives.seconds(job, "all_reduce", size, Group(job.layout.tp_size, 1), c)
    return seconds + 2 * c["collective_start_s"]


def _context_parallel(job: Job, c: hardware.Coefficients) -> float:
    """Keys and values from the other ranks (forward) or their gradients (backward), behind attention where it lasts."""
    cp, m = job.layout.cp_size, job.model
    if cp == 1:
        return 0.0
    group = Group(cp, job.layout.tp_size)
    size = job.tokens * cp * 2 * m.query_groups * m.head_size / job.layout.tp_size * job.element
    seconds = collectives.seconds(job, "all_gather", size, group, c)
    hidden = _attention(job, c)[0] if job.backend == "te" else 0
    return max(seconds - hidden, 0.1 * seconds)


def _sharded_weights(job: Job, forward: float, backward: float, c: hardware.Coefficients) -> tuple[float, float]:
    """ZeRO-3 gathers a layer's weights in both passes, 2 and 3 scatter its gradients in each micro batch, beside the
    products."""
    if job.sharding not in ("zero2", "zero3"):
        return 0.0, 0.0
    group = Group(job.layout.dp_size, job.layout.tp_size)
    size = layer_parameters(job) * job.element
    move = collectives.seconds(job, "all_gather", size, group, c)
    gather = move if job.sharding == "zero3" else 0
    hide, cost, both = c["dp_overlap"], c["overlap_cost"], gather + move
    return max(gather - hide * forward, cost * gather), max(both - hide * backward, cost * both)


def embedding_seconds(job: Job, c: hardware.Coefficients) -> Seconds:
    """Both passes of the input embedding: its rows read, and a dense gradient made and added."""
    if job.rates is not None:
        return Seconds(memory_kernels=measured_speed.embedding(job, job.rates), tensor_parallel=_one_all_reduce(job, c))
    rows = job.tokens * job.model.hidden_size * job.element
    return Seconds(
        memory_kernels=kernels.memory(4 * rows + 14 * embedding_parameters(job), job.cluster.gpu, c, 4),
        tensor_parallel=_one_all_reduce(job, c),
    )


def head_seconds(job: Job, c: hardware.Coefficients) -> Seconds:
    """Both passes of output layer and cross-entropy. A logit is read or written in fp32 about ten times, in 16 bits
    four times."""
    if job.rates is not None:
        measured_products, loss = measured_speed.head(job, job.rates)
        return Seconds(measured_products, 0.0, loss, _one_all_reduce(job, c))
    m, t, gpu = job.model, job.tokens, job.cluster.gpu
    v, h, kind = m.padded_vocab_size / job.layout.tp_size, m.hidden_size, job.dtype
    products = kernels.matmul(t, v, h, kind, gpu, c) + kernels.matmul(t, h, v, kind, gpu, c)
    products += kernels.matmul(v, h, t, kind, gpu, c) if job.lora is None else 0.0
    moved = t * v * c["logit_bytes"] + v * h * (8 if job.fused_gradient_sums else 12)
    return Seconds(products, 0.0, kernels.memory(moved, gpu, c, 10), _one_all_reduce(job, c))


def _recomputed(job: Job, forward: Seconds, c: hardware.Coefficients) -> Seconds:
    if job.recompute == "full":
        return replace(forward, weights=0.0)
    if job.recompute == "selective":
        return Seconds(attention=forward.attention)
    return Seconds()


def _p2p(job: Job, c: hardware.Coefficients) -> float:
    """One micro batch's activations in and gradients out, of one chunk; interleaved schedules send beside computing."""
    pp = job.layout.pp_size
    if pp == 1:
        return 0.0
    split = job.layout.tp_size if job.sequence_parallel else 1
    size = job.tokens * job.model.hidden_size / split * job.element
    stride = job.layout.tp_size * job.layout.cp_size * job.layout.dp_size
    both = 2 * collectives.seconds(job, "send", size, Group(2, stride), c)
    return both * (1 - c["p2p_overlap"]) if job.layout.vpp_size > 1 and job.overlap_p2p else both


def _data_parallel(job: Job, forward: float, backward: float, c: hardware.Coefficients) -> tuple[float, float]:
    """(gradients, weights) that are waited for once a step, of the stage with most parameters.

    Overlapped, the reduction runs beside the last micro batch's backward pass and the gathering beside the first one's
    forward pass; what is hidden still costs a share, as it takes multiprocessors and bandwidth.
    """
    group = Group(job.layout.dp_size * job.layout.cp_size, job.layout.tp_size)
    if job.sharding in ("zero2", "zero3") or group.size == 1:
        return 0.0, 0.0
    count = most_trained(job)
    grad_bytes = 4 if job.grads_in_fp32 or job.dtype == "fp32" else 2
    grad_dtype = "fp32" if grad_bytes == 4 else job.dtype
    if job.sharding == "none":
        gradients, weights = collectives.seconds(job, "all_reduce", count * grad_bytes, group, c, grad_dtype), 0.0
    else:
        gradients = collectives.seconds(job, "reduce_scatter", count * grad_bytes, group, c, grad_dtype)
        weights = collectives.seconds(job, "all_gather", count * job.element, group, c)
    hide = c["dp_overlap"]
    if job.overlap_grads:
        gradients = max(gradients - hide * backward, c["overlap_cost"] * gradients)
    if job.overlap_params:
        weights = max(weights - hide * forward, c["overlap_cost"] * weights)
    return gradients, weights


def _optimizer(job: Job, c: hardware.Coefficients) -> float:
    """AdamW goes through 30 bytes a parameter that the rank updates; zeroing and the norm through its gradients
    twice."""
    if job.rates is not None:
        return measured_speed.optimizer(job, job.rates)
    count = trained_parameters(job, 0)
    shards = job.layout.dp_size * job.layout.cp_size if job.sharding != "none" else 1
    held = count / (shards if job.sharding in ("zero2", "zero3") else 1)
    return kernels.memory(30 * count / shards + 8 * held, job.cluster.gpu, c)
