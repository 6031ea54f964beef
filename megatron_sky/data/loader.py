"""Batches for the trainer: sample numbers in, tensors out.

`TrainData` holds the sampling plan and the opened files and nothing else: what a batch holds depends on its sample
numbers alone. `prefetch` reads ahead in threads (the work is file reading, which runs beside Python) and never changes
what comes out or its order. Every id is checked against the vocabulary: on a GPU a stray one would end the run with an
assertion in some kernel, here it ends with the name of the file and the place in it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.indexed import IndexedTokens, bin_path
from megatron_sky.data.meta import Meta, check_source
from megatron_sky.data.plan import SamplingPlan, build_plan
from megatron_sky.errors import ConfigError, DataError, Problem


@dataclass(frozen=True)
class Batch:
    """A micro batch, on the CPU.

    Attributes:
        tokens, labels: int64 `[b, s]`; `labels[i, t]` is the token after `tokens[i, t]`.
        loss_mask: float32 `[b, s]`, 1 where the loss counts.
        position_ids: int64 `[b, s]`.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor


class TrainData:
    """The training mixture of a run.

    Args:
        config: the recipe's data section.
        seq_length: tokens a sample feeds to the model.
        vocab_size: every token id must be below.
        total_samples: samples of the whole run, at which ramps reach their end.
        tokenizer_sha256: hash of the run's tokenizer; meta files must agree with it.

    Raises:
        ConfigError: no source, no weight above 0, a source too short or used more often than `max_epochs`.
        DataError: a file is missing, damaged, or contradicts its meta file or the model.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seq_length: int,
        vocab_size: int,
        total_samples: int,
        tokenizer_sha256: str | None = None,
    ):
        self.seq_length = seq_length
        self.vocab_size = vocab_size
        _check_weights(config)
        self.metas: list[Meta | None] = [
            check_source(source.path, vocab_size=vocab_size, tokenizer_sha256=tokenizer_sha256)
            for source in config.train
        ]
        self.files = [IndexedTokens(source.path) for source in config.train]
        sources = [
            (source.name, source.weight, file.num_tokens) for source, file in zip(config.train, self.files, strict=True)
        ]
        self.plan: SamplingPlan = build_plan(
            sources,
            seq_length=seq_length,
            total_samples=total_samples,
            seed=config.seed,
            max_epochs=config.max_epochs,
        )
        if problems := self.plan.problems():
            raise ConfigError(problems)

    def read(self, sample_numbers: Sequence[int]) -> Batch:
        """The batch of these samples of the run, in this order."""
        rows = np.empty((len(sample_numbers), self.seq_length + 1), dtype=np.int64)
        for row, number in enumerate(sample_numbers):
            location = self.plan.locate(number)
            offset = self.plan.token_offset(location)
            rows[row] = self.files[location.source].read(offset, self.seq_length + 1)
            _check_ids(rows[row], self.files[location.source], offset, self.vocab_size)
        return _batch(rows, np.ones((len(rows), self.seq_length), dtype=np.float32))


class ValidationData:
    """A whole held-out set, cut into consecutive sequences that don't overlap; no token is left out.

    Args:
        prefix: path of the pair.
        max_sequences: use this many sequences from the start; None: all.
    """

    def __init__(
        self,
        prefix: str,
        *,
        seq_length: int,
        vocab_size: int,
        max_sequences: int | None = None,
        tokenizer_sha256: str | None = None,
    ):
        self.meta = check_source(prefix, vocab_size=vocab_size, tokenizer_sha256=tokenizer_sha256)
        self.file = IndexedTokens(prefix)
        self.seq_length = seq_length
        self.vocab_size = vocab_size
        if self.file.num_tokens < 2:
            raise DataError(f"{bin_path(prefix)} holds one token; a loss needs two\n  mend: give a larger set")
        whole = -(-(self.file.num_tokens - 1) // seq_length)
        self.num_sequences = whole if max_sequences is None else min(whole, max_sequences)

    def read(self, indices: Sequence[int]) -> Batch:
        """The batch of these sequences. An index at or beyond `num_sequences` gives a row whose loss is masked out, so
        that all ranks can run the same number of micro batches."""
        rows = np.zeros((len(indices), self.seq_length + 1), dtype=np.int64)
        mask = np.zeros((len(indices), self.seq_length), dtype=np.float32)
        for row, index in enumerate(indices):
            if index >= self.num_sequences:
                continue
            offset = index * self.seq_length
            count = min(self.seq_length + 1, self.file.num_tokens - offset)
            rows[row, :count] = self.file.read(offset, count)
            mask[row, : count - 1] = 1.0
            _check_ids(rows[row], self.file, offset, self.vocab_size)
        return _batch(rows, mask)


def prefetch(
    read: Callable[[Sequence[int]], Batch], requests: Iterable[Sequence[int]], num_workers: int, depth: int
) -> Iterator[Batch]:
    """`map(read, requests)`, with up to `depth` requests read ahead by `num_workers` threads.

    An error of a request is raised when its turn comes. Closing the iterator, or dropping it, ends the threads.
    """
    if num_workers == 0:
        yield from map(read, requests)
        return
    waiting: deque[Future[Batch]] = deque()
    source = iter(requests)
    pool = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="data")
    try:
        for request in source:
            waiting.append(pool.submit(read, request))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_weights(config: DataConfig) -> None:
    if not config.train:
        raise ConfigError(Problem("data.train", "names no source", "list at least one {name, path, weight}"))
    for end in ("start", "end"):
        if sum(getattr(source.weight, end, source.weight) for source in config.train) <= 0:
            raise ConfigError(
                Problem("data.train", f"all weights are 0 at the run's {end}", "give a source a weight above 0")
            )


def _check_ids(row: np.ndarray, file: IndexedTokens, offset: int, vocab_size: int) -> None:
    if int(row.min()) >= 0 and int(row.max()) < vocab_size:
        return
    at = int(np.flatnonzero((row < 0) | (row >= vocab_size))[0])
    raise DataError(
        f"{bin_path(file.prefix)}: token {offset + at:,} (byte {(offset + at) * file.dtype.itemsize:,}) is {row[at]}, "
        f"but ids must be in [0, model.vocab_size = {vocab_size})\n  mend: set model.vocab_size to the size of the "
        "tokenizer the file was made with, or tokenize the text again"
    )


def _batch(rows: np.ndarray, mask: np.ndarray) -> Batch:
    """Rows of seq_length + 1 tokens as inputs and their successors."""
    whole = torch.from_numpy(rows)
    positions = torch.arange(rows.shape[1] - 1).repeat(len(rows), 1)
    return Batch(whole[:, :-1].contiguous(), whole[:, 1:].contiguous(), torch.from_numpy(mask), positions)
