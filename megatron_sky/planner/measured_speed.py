"""Seconds of a step's parts where the machine's rates were measured: the same parts as in `speed`, looked up."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_sky.planner.job import Job
from megatron_sky.planner.measured import Rates
from megatron_sky.planner.memory import takes_bounds
from megatron_sky.planner.parameters import most_trained


@dataclass(frozen=True)
class LayerPass:
    """One layer's forward or backward pass on one micro batch, without the transfers of its collectives."""

    products: float
    attention: float
    memory_kernels: float
    wait_tp: float
    """For slower ranks, at two collectives."""
    wait_cp: float
    """At one."""


def layer_passes(job: Job, rates: Rates, linears: Sequence[tuple[float, float]]) -> tuple[LayerPass, LayerPass]:
    """(forward, backward) of one layer. `linears`: (columns, rows) of its products on one rank."""
    m, t, tp = job.model, job.tokens, job.layout.tp_size
    forward = backward = 0.0
    for n, k in linears:
        forward += rates.seconds("product_forward", job.dtype, t, n, k)
        backward += rates.seconds("product_input_gradient", job.dtype, t, n, k)
        backward += rates.seconds("product_weight_gradient", job.dtype, t, n, k) if job.lora is None else 0.0
    attention_sizes = (
        job.micro_batch_size,
        m.seq_length // job.layout.cp_size,
        m.seq_length * _masked_scores(job),
        m.num_attention_heads / tp,
        m.head_size,
    )
    style = "gated" if m.activation == "swiglu" else "plain"
    stream = m.hidden_size / (tp if job.sequence_parallel else 1)
    qkv = (m.num_attention_heads + 2 * m.query_groups) * m.head_size / tp
    layer_sizes = (t, stream, qkv, m.ffn_hidden_size / tp)
    start, _, _ = rates.overhead(job.dtype)
    passes = []
    for name, products, share in (("forward", forward, 1 / 3), ("backward", backward, 2 / 3)):
        attention = rates.seconds(f"attention_{name}", job.dtype, *attention_sizes)
        kernels = rates.seconds(f"{style}_layer_{name}", job.dtype, *layer_sizes)
        kernels += share * start
        work = products + attention + kernels
        wait_tp = 2 * rates.waiting(job.dtype, work / 2) if tp > 1 else 0.0
        wait_cp = rates.waiting(job.dtype, work) if job.layout.cp_size > 1 else 0.0
        passes.append(LayerPass(products, attention, kernels, wait_tp, wait_cp))
    return passes[0], passes[1]


def _masked_scores(job: Job) -> float:
    """Scores that are computed, in those of a causal kernel, which leaves out the half that is not seen.

    With a mask none are left out. A context-parallel rank's two chunks each have the keys up to their own end, and on
    a GPU a mask only where documents are kept apart.
    """
    cp = job.layout.cp_size
    if cp > 1:
        return 1 + 1 / (2 * cp) if job.cluster.gpu.shared or job.document_mask else 1.0
    return 2.0 if job.document_mask and (job.cluster.gpu.shared or not takes_bounds(job)) else 1.0


def embedding(job: Job, rates: Rates) -> float:
    """Both passes."""
    rows = job.model.padded_vocab_size / job.layout.tp_size
    return rates.seconds("embedding", job.dtype, job.tokens, rows, job.model.hidden_size)


def head(job: Job, rates: Rates) -> tuple[float, float]:
    """(products, loss) of both passes of the output layer and the cross-entropy."""
    t, rows, h = job.tokens, job.model.padded_vocab_size / job.layout.tp_size, job.model.hidden_size
    kinds = ("product_forward", "product_input_gradient", *(["product_weight_gradient"] if job.lora is None else []))
    return sum(rates.seconds(kind, job.dtype, t, rows, h) for kind in kinds), rates.seconds("loss", job.dtype, t, rows)


def optimizer(job: Job, rates: Rates) -> float:
    """Gradients set to zero and scaled, of all that the rank holds; norm, clipping and AdamW of what it updates."""
    count = most_trained(job)
    shards = job.layout.dp_size * job.layout.cp_size if job.sharding != "none" else 1
    return rates.seconds("gradients", job.dtype, count) + rates.seconds("update", job.dtype, count / shards)


def host(job: Job, rates: Rates) -> float:
    """What starting a step and its micro batches costs."""
    _, micro_batch, step = rates.overhead(job.dtype)
    return step + micro_batch * job.num_microbatches * job.layout.vpp_size
