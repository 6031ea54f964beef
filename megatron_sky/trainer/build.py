"""A rank's model and optimizer, and what runs steps on them: the same for a run and for whoever tries one out."""

from collections.abc import Callable

from megatron_sky.config import Config
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.model.build import build_model
from megatron_sky.optim.build import build_optimizer
from megatron_sky.trainer.step import StepRunner


def build_runner(
    config: Config, *, context: ParallelContext, beat: Callable[[str], None], draws_weights: bool
) -> StepRunner:
    """Model and optimizer of this rank; `draws_weights`: filled from train.seed, and not from a checkpoint later."""
    lora = config.finetune.lora if config.finetune else None
    context.seed_step(config.train.seed, 0, for_graphs=config.kernels.cuda_graphs)
    model = build_model(
        config.model,
        parallel=config.parallel,
        precision=config.precision,
        train=config.train,
        kernels=config.kernels,
        context=context,
        init=draws_weights,
        lora=lora,
    )
    optimizer = build_optimizer(
        config.optimizer,
        schedule=config.schedule,
        parallel=config.parallel,
        precision=config.precision,
        chunks=model.chunks,
        gloo_groups=context.has_gloo_groups,
    )
    has_dropout = config.model.hidden_dropout > 0 or config.model.attention_dropout > 0
    has_dropout = has_dropout or (lora is not None and lora.dropout > 0)
    return StepRunner(
        model,
        optimizer=optimizer,
        numbers=config.optimizer,
        context=context,
        seq_length=config.model.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        masks_documents=config.data.document_mask,
        dropout_seed=config.train.seed if has_dropout else None,
        beat=beat,
        dpo=config.finetune.dpo if config.finetune else None,
    )
