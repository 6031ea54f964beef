"""Parameters that one rank of each pipeline stage holds: arithmetic over the shape, equal to the built model's."""

from megatron_sky.model.flops import lora_layer_parameters
from megatron_sky.planner.job import Job


def layer_parameters(job: Job) -> float:
    """One layer's parameters on one tensor-parallel rank; norms and the biases of row-parallel linears are whole."""
    m, tp = job.model, job.layout.tp_size
    h, f = m.hidden_size, m.ffn_hidden_size
    q, kv = m.num_attention_heads * m.head_size, 2 * m.query_groups * m.head_size
    f1 = f * (2 if m.activation == "swiglu" else 1)
    split = h * (q + kv) + q * h + h * f1 + f * h
    whole = 2 * norm_parameters(job)
    if m.add_bias_linear:
        split, whole = split + q + kv + f1, whole + 2 * h
    return split / tp + whole


def norm_parameters(job: Job) -> int:
    return job.model.hidden_size * (2 if job.model.normalization == "layernorm" else 1)


def embedding_parameters(job: Job) -> float:
    m = job.model
    positions = m.seq_length * m.hidden_size if m.position_embedding == "learned_absolute" else 0
    return m.padded_vocab_size * m.hidden_size / job.layout.tp_size + positions


def head_parameters(job: Job) -> float:
    """Final norm and output layer; a tied output layer is a copy of its own only where the embedding is elsewhere."""
    m = job.model
    own = not m.tie_embeddings or job.layout.pp_size > 1
    return norm_parameters(job) + (m.padded_vocab_size * m.hidden_size / job.layout.tp_size if own else 0)


def stage_parameters(job: Job, stage: int) -> float:
    """Parameters of one rank of a stage, all its chunks, but for adapters."""
    layers = job.stage_layers(stage) * layer_parameters(job)
    first = embedding_parameters(job) if stage == 0 else 0
    last = head_parameters(job) if stage == job.layout.pp_size - 1 else 0
    return layers + first + last


def trained_parameters(job: Job, stage: int) -> float:
    """Those of them that are trained: all, or adapters alone."""
    if job.lora is None:
        return stage_parameters(job, stage)
    return job.stage_layers(stage) * lora_layer_parameters(job.model, job.lora, job.layout.tp_size)


def most_trained(job: Job) -> float:
    """Of the stage that has most."""
    return max(trained_parameters(job, 0), trained_parameters(job, job.layout.pp_size - 1))
