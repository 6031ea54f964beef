"""Seconds of collectives among the ranks of a layout on a cluster.

Ranks are numbered tensor-parallel first, then context, data and pipeline (`distributed.topology`), so a group of
stride w (the ranks between two of its neighbours) has `gpus_per_node / w` members on a node, and as many groups as the
stride share a node's network.
"""

from dataclasses import dataclass

from megatron_sky.planner.hardware import Cluster, Coefficients
from megatron_sky.planner.job import Job


@dataclass(frozen=True)
class Group:
    """`size` ranks, `stride` apart."""

    size: int
    stride: int


def bandwidth(group: Group, cluster: Cluster, c: Coefficients) -> float:
    """Bytes a second that each rank of a ring sends, every group of the kind sending at once."""
    link = cluster.gpu.link_gb_per_s * 1e9 * c["link_efficiency"]
    if group.size * group.stride <= cluster.gpus_per_node:
        return link
    sharing = min(group.stride, cluster.gpus_per_node)
    return min(link, cluster.node_gb_per_s * 1e9 / sharing * c["network_efficiency"])


def seconds(job: Job, kind: str, size_bytes: float, group: Group, c: Coefficients, dtype: str | None = None) -> float:
    """Of an all_reduce, reduce_scatter, all_gather or send (its group: the two ranks) of `size_bytes` in a job.

    Within a machine whose rates were measured, these count. `dtype`: of the elements, where it is not the model's.
    """
    if group.size == 1:
        return 0.0
    rates = job.rates
    if rates is not None and rates.ranks > 1 and group.size * group.stride <= job.cluster.gpus_per_node:
        return rates.collective(kind, dtype or job.dtype, group.size, size_bytes)
    if kind == "send":
        return send(size_bytes, group.stride, job.cluster, c)
    return (all_reduce if kind == "all_reduce" else scatter_or_gather)(size_bytes, group, job.cluster, c)


def scatter_or_gather(size_bytes: float, group: Group, cluster: Cluster, c: Coefficients) -> float:
    """Reduce-scatter or all-gather of `size_bytes` in all: (n - 1) / n of it passes every rank of the ring."""
    if group.size == 1:
        return 0.0
    within = group.size * group.stride <= cluster.gpus_per_node
    hops = (group.size - 1) * c["hop_latency_s" if within else "network_hop_latency_s"]
    return size_bytes * (group.size - 1) / group.size / bandwidth(group, cluster, c) + hops


def all_reduce(size_bytes: float, group: Group, cluster: Cluster, c: Coefficients) -> float:
    """A reduce-scatter and an all-gather."""
    return 2 * scatter_or_gather(size_bytes, group, cluster, c)


def send(size_bytes: float, stride: int, cluster: Cluster, c: Coefficients) -> float:
    """From one pipeline stage to the next, all ranks of a node at once."""
    if stride < cluster.gpus_per_node:
        rate = cluster.gpu.link_gb_per_s * 1e9 * c["link_efficiency"]
    else:
        rate = cluster.node_gb_per_s * 1e9 / cluster.gpus_per_node * c["network_efficiency"]
    return size_bytes / rate + c["network_hop_latency_s"]
