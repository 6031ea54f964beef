"""The stream of this rank's micro batches, in the order of the run's samples."""

from collections.abc import Iterator

from megatron_sky.config.schema import TrainConfig
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.distributed.topology import samples_of_microbatch
from megatron_sky.optim.schedule import global_batch_size_at
from megatron_sky.trainer.state import TrainState, plan_number


def training_requests(
    train: TrainConfig, *, context: ParallelContext, seq_length: int, state: TrainState
) -> Iterator[list[int]]:
    """The plan's numbers of every micro batch this data-parallel rank will read from `state` on, endless."""
    dp_size, dp_rank = context.layout.dp_size, context.place.dp_rank
    consumed_samples, skipped = state.consumed_samples, list(state.skipped)
    while True:
        size = global_batch_size_at(train.global_batch_size, train.batch_rampup, consumed_samples * seq_length)
        for index in range(size // (train.micro_batch_size * dp_size)):
            samples = samples_of_microbatch(
                consumed_samples, index, micro_batch_size=train.micro_batch_size, dp_size=dp_size, dp_rank=dp_rank
            )
            yield [plan_number(sample, skipped) for sample in samples]
        consumed_samples += size


def validation_requests(num_sequences: int, micro_batch_size: int, context: ParallelContext) -> list[range]:
    """Sequence numbers of every micro batch of a validation set; numbers beyond the set's end are masked rows.

    All data-parallel ranks, and interleaved pipelines, need equal and round numbers of micro batches.
    """
    layout = context.layout
    count = -(-num_sequences // (micro_batch_size * layout.dp_size))
    if layout.vpp_size > 1:
        count = -(-count // layout.pp_size) * layout.pp_size
    return [
        samples_of_microbatch(
            0, index, micro_batch_size=micro_batch_size, dp_size=layout.dp_size, dp_rank=context.place.dp_rank
        )
        for index in range(count)
    ]
