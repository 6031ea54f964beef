"""A training job as the closed forms see it: a recipe's sections, or a published measurement, on a cluster."""

from dataclasses import dataclass
from typing import Literal

from megatron_sky.config import Config
from megatron_sky.config.schema import LoraConfig, ModelConfig
from megatron_sky.distributed.topology import Layout
from megatron_sky.planner.hardware import Cluster
from megatron_sky.planner.measured import Rates

Sharding = Literal["none", "zero1", "zero2", "zero3"]
Recompute = Literal["none", "selective", "full"]
ProductFormat = Literal["none", "fp8", "mxfp8", "nvfp4"]


@dataclass(frozen=True)
class Job:
    """One model in one layout. The program itself shards at most the optimizer (zero1); zero2 and zero3 (FSDP too) are
    there to read published measurements of other programs."""

    model: ModelConfig
    layout: Layout
    cluster: Cluster
    micro_batch_size: int
    global_batch_size: int
    sequence_parallel: bool = False
    sharding: Sharding = "zero1"
    recompute: Recompute = "none"
    recompute_num_layers: int = 1
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    product_format: ProductFormat = "none"
    attention: Literal["flash", "unfused"] = "flash"
    backend: Literal["torch", "te"] = "torch"
    grads_in_fp32: bool = True
    overlap_grads: bool = False
    overlap_params: bool = False
    overlap_tp: bool = False
    overlap_p2p: bool = True
    fused_rope: bool = False
    fused_gradient_sums: bool = False
    document_mask: bool = False
    lora: LoraConfig | None = None

    @classmethod
    def of(cls, config: Config, cluster: Cluster, world_size: int) -> "Job":
        """The recipe on `world_size` GPUs of the cluster; `config.validate` has passed it."""
        p, t, fp8 = config.parallel, config.train, config.precision.fp8
        backend = config.model.backend
        return cls(
            model=config.model,
            layout=Layout.of(p, world_size),
            cluster=cluster,
            micro_batch_size=t.micro_batch_size,
            global_batch_size=t.global_batch_size,
            sequence_parallel=p.sequence_parallel,
            sharding="zero1" if p.distributed_optimizer else "none",
            recompute=t.recompute,
            recompute_num_layers=t.recompute_num_layers,
            dtype=config.precision.dtype,
            product_format="none" if fp8 is None else ("mxfp8" if fp8.recipe == "mxfp8" else "fp8"),
            backend="te" if backend == "te" else "torch",
            grads_in_fp32=config.precision.grad_reduce_in_fp32,
            overlap_grads=p.overlap_grad_reduce,
            overlap_params=p.overlap_param_gather,
            overlap_tp=p.tp_comm_overlap,
            overlap_p2p=p.overlap_p2p,
            fused_rope=config.kernels.rope_fusion,
            fused_gradient_sums=config.kernels.gradient_accumulation_fusion,
            document_mask=config.data.document_mask,
            lora=config.lora,
        )

    @property
    def rates(self) -> Rates | None:
        """What was measured on the machine, with as many ranks on it as this job has there; None: nothing was."""
        return self.cluster.rates(self.layout.world_size)

    @property
    def num_microbatches(self) -> int:
        return max(1, self.global_batch_size // (self.micro_batch_size * self.layout.dp_size))

    @property
    def tokens(self) -> int:
        """Tokens of one micro batch on one rank."""
        return self.micro_batch_size * self.model.seq_length // self.layout.cp_size

    @property
    def element(self) -> int:
        """Bytes of an activation or weight."""
        return 4 if self.dtype == "fp32" else 2

    def stage_layers(self, stage: int) -> int:
        """Layers of a pipeline stage. The program's divide evenly; of published jobs that do not, those whose layers
        and two more would have embedding and output layer in the place of one each, and others the rest in front."""
        layers, pp = self.model.num_layers, self.layout.pp_size
        if layers % pp and (layers + 2) % pp == 0:
            return (layers + 2) // pp - (stage == 0) - (stage == pp - 1)
        return layers // pp + (stage < layers % pp)

    def chunks_in_flight(self, stage: int) -> int:
        """Forward passes of a chunk whose activations a stage holds at its peak.

        1F1B: one more than the stages behind. Interleaved 1F1B (Narayanan et al. 2021, arXiv 2104.04473): its warm-up
        is 2 (stages behind) + (chunks - 1) * stages, and one more.
        """
        pp, vpp = self.layout.pp_size, self.layout.vpp_size
        behind = pp - 1 - stage
        ahead = behind + 1 if vpp == 1 else 2 * behind + (vpp - 1) * pp + 1
        return min(ahead, self.num_microbatches * vpp)
