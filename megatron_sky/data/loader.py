"""Batches for the trainer: sample numbers in, tensors out.

`TrainData` holds the sampling plan and the opened files and nothing else: what a batch holds depends on its sample
numbers alone. `prefetch` reads ahead in threads (the work is file reading, which runs beside Python) and never changes
what comes out or its order. Every id is checked against the vocabulary: on a GPU a stray one would end the run with an
assertion in some kernel, here it ends with the name of the file and the place in it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.sampling.mixture import SessionMixture, plan_of
from megatron_sky.data.sampling.run_plan import RunPlan, continue_plan, describe_change
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path
from megatron_sky.data.tokens.mask import ANSWER, REJECTED
from megatron_sky.data.tokens.sources import OpenSource
from megatron_sky.distributed import device
from megatron_sky.errors import ConfigError, DataError, Problem


@dataclass(frozen=True)
class Batch:
    """A micro batch, on the CPU; to be read only, as batches of one shape share what is the same in all of them.

    Attributes:
        tokens, labels: int64 `[b, s]`; `labels[i, t]` is the token after `tokens[i, t]`.
        loss_mask: float32 `[b, s]`, 1 where the loss counts.
        position_ids: int64 `[b, s]`; from 0 again in each document where documents are kept apart.
        document_ids: int32 `[b, s]`, the number of the document within the row; None where they are not kept apart.
        cu_seqlens: int32 `[n + 1]`, where each document begins in the batch laid out as one row of b * s tokens, and
            its end; None likewise.
        answer_ids: int64 `[b, s]`, of pairs (`DocumentBounds.pairs`) which of the batch's answers a label is of, and
            their number where it is of none; None where the loss is each token's own.
        reference: float32 `[answers]`, what the base says of them; None likewise.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    answer_ids: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    def pin(self) -> "Batch":
        """The batch in memory from which a copy to the device runs beside the compute; see `device.pin`."""
        return replace(self, **{name: device.pin(value) for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class DocumentBounds:
    """What batches make of the places where documents end.

    Attributes:
        mask_attention: attention stays within a document, and positions begin anew (`data.document_mask`).
        mask_ends: no loss where the label is the next document's first token (`data.mask_document_ends`).
        pairs: documents are chosen and rejected answers by turns, whose log-probabilities are compared.
    """

    mask_attention: bool = False
    mask_ends: bool = False
    pairs: bool = False

    @classmethod
    def of(cls, config: DataConfig, *, pairs: bool = False) -> "DocumentBounds":
        return cls(config.document_mask, config.mask_document_ends, pairs)

    @property
    def needed(self) -> bool:
        return self.mask_attention or self.mask_ends

    def batch(
        self,
        rows: Sequence[np.ndarray],
        starts: Sequence[np.ndarray],
        mask: torch.Tensor | None,
        reference: "Sequence[np.ndarray] | None" = None,
    ) -> Batch:
        """The batch of `rows` with their documents' `starts` (`IndexedTokens.document_starts`), where needed.

        `reference`: of pairs, by row, a number for each of its answers; none of a row that is not there.
        """
        if self.mask_ends:
            within = torch.from_numpy(1.0 - np.stack(starts)[:, 1:].astype(np.float32))
            mask = within if mask is None else mask * within
        batch = make_batch(rows, mask, np.stack(starts) if self.mask_attention else None)
        return batch if reference is None else _with_answers(batch, reference)


class PlannedSource(Protocol):
    """A source of the mixture: its name, and the tokens it holds."""

    @property
    def name(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...


class TrainingPlan(Protocol):
    """The order of a run's samples, whichever program decides it (`RunPlan` says what each of these is)."""

    @property
    def sources(self) -> Sequence[PlannedSource]: ...
    def source_of(self, number: int) -> int: ...
    def consumed(self, sample_count: int) -> list[int]: ...
    def epochs(self, sample_count: int) -> list[float]: ...
    def fingerprint(self) -> dict: ...


class TrainingData(Protocol):
    """What the trainer reads: a plan, and the samples that it numbers (see `TrainData`)."""

    @property
    def plan(self) -> TrainingPlan: ...
    @property
    def sources(self) -> Sequence[OpenSource]: ...
    @property
    def seq_length(self) -> int: ...
    def continue_from(self, saved: Mapping, used_samples: int) -> str: ...
    def read(self, sample_numbers: Sequence[int]) -> Batch: ...


class TrainData:
    """The training mixture of a run.

    Args:
        config: the recipe's data section.
        sources: its training sources, opened, in its order.
        seq_length: tokens a sample feeds to the model.
        vocab_size: every token id must be below.
        sessions: the run's samples and what they are drawn from.
        pairs: the sources hold pairs of answers (`DocumentBounds.pairs`).

    Raises:
        ConfigError: no source, no weight above 0, a source too short or used more often than `max_epochs`.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[OpenSource],
        *,
        seq_length: int,
        vocab_size: int,
        sessions: Sequence[SessionMixture],
        pairs: bool = False,
    ):
        self.sources = sources
        self.seq_length = seq_length
        self.vocab_size = vocab_size
        self._bounds = DocumentBounds.of(config, pairs=pairs)
        self._answers = [Answers(source) for source in sources]
        sizes = [source.tokens.num_tokens for source in sources]
        for given, source in zip(config.train, sources, strict=True):
            check_rows(source, f"data.train[{given.name}]", seq_length, self._bounds)
            if source.mask is not None and config.sampling != "plan":
                rule = f"has no place for packed samples, as data.train[{given.name}] holds"
                raise ConfigError(Problem("data.sampling", rule, "set data.sampling=plan", config.sampling))
        self._planned = plan_of(config, sizes, seq_length=seq_length, sessions=sessions)
        self.plan: RunPlan = self._planned
        self._check_plan()

    def continue_from(self, saved: Mapping, used_samples: int) -> str:
        """Take up a resumed run's plan; call it before the first `read`.

        Args:
            saved: `plan.fingerprint()` as the checkpoint holds it.
            used_samples: samples the run has used.

        Returns:
            What of the mixture differs from the checkpoint's, so that a new segment begins; empty: nothing.

        Raises:
            ConfigError: the change would repeat or skip data, or a source would now be used too often.
        """
        self.plan = continue_plan(saved, self._planned, used_samples)
        self._check_plan()
        return describe_change(saved, self.plan, used_samples)

    def use_reference(self, values: Sequence[np.ndarray]) -> None:
        """Takes what the base says of each source's answers; before the first `read` of pairs that count."""
        self._answers = [Answers(source, own) for source, own in zip(self.sources, values, strict=True)]

    def _check_plan(self) -> None:
        if problems := self.plan.problems():
            raise ConfigError(problems)

    def read(self, sample_numbers: Sequence[int]) -> Batch:
        """The batch of these samples of the run, in this order."""
        rows, starts, masks, reference = [], [], [], []
        for number in sample_numbers:
            location = self.plan.locate(number)
            offset = self.plan.token_offset(location)
            source = self.sources[location.source]
            tokens = source.tokens.read(offset, self.seq_length + 1)
            check_ids(tokens, source.tokens, offset, self.vocab_size)
            rows.append(tokens)
            if self._bounds.needed:
                starts.append(source.tokens.document_starts(offset, len(tokens)))
            masks.append(counted(source, offset, self.seq_length))
            if self._bounds.pairs:
                reference.append(self._answers[location.source].of_row(offset, starts[-1][:-1]))
        mask = _stacked(masks, self.seq_length)
        return self._bounds.batch(rows, starts, mask, reference if self._bounds.pairs else None)


class ValidationData:
    """A whole held-out set, cut into consecutive sequences that don't overlap; no token is left out.

    Args:
        source: the pair, opened.
        max_sequences: use this many sequences from the start; None: all.
        bounds: what to make of documents' ends; the same as in training, for a loss that compares with training's.
    """

    def __init__(
        self,
        source: OpenSource,
        *,
        seq_length: int,
        vocab_size: int,
        max_sequences: int | None = None,
        bounds: DocumentBounds = DocumentBounds(),
    ):
        self.source, self.file = source, source.tokens
        self._bounds, self._answers = bounds, Answers(source)
        check_rows(source, f"validation.sets: {source.tokens.prefix}", seq_length, bounds)
        self.seq_length = seq_length
        self.vocab_size = vocab_size
        if self.file.num_tokens < 2:
            raise DataError(f"{bin_path(self.file.prefix)} holds one token; a loss needs two\n  fix: give a larger set")
        whole = -(-(self.file.num_tokens - 1) // seq_length)
        self.num_sequences = whole if max_sequences is None else min(whole, max_sequences)

    def read(self, indices: Sequence[int]) -> Batch:
        """The batch of these sequences. An index at or beyond `num_sequences` gives a row whose loss is masked out, so
        that all ranks can run the same number of micro batches."""
        rows = np.zeros((len(indices), self.seq_length + 1), dtype=np.int64)
        starts = np.zeros(rows.shape, dtype=bool)
        mask = np.zeros((len(indices), self.seq_length), dtype=np.float32)
        reference = [np.zeros(0, np.float32) for _ in indices]
        for row, index in enumerate(indices):
            if index >= self.num_sequences:
                continue
            offset = index * self.seq_length
            count = min(self.seq_length + 1, self.file.num_tokens - offset)
            tokens = self.file.read(offset, count)
            check_ids(tokens, self.file, offset, self.vocab_size)
            rows[row, :count] = tokens
            counts = counted(self.source, offset, count - 1)
            mask[row, : count - 1] = 1.0 if counts is None else counts
            if self._bounds.needed:
                starts[row, :count] = self.file.document_starts(offset, count)
            if self._bounds.pairs:
                reference[row] = self._answers.of_row(offset, starts[row, :-1])
        told = reference if self._bounds.pairs else None
        return self._bounds.batch(list(rows), list(starts), torch.from_numpy(mask), told)

    def use_reference(self, values: np.ndarray) -> None:
        """Takes what the base says of the set's answers; before the first `read` of pairs that count."""
        self._answers = Answers(self.source, values)


@dataclass(frozen=True)
class Answers:
    """The answers of a source of pairs. `values`: what the base says of each; zeros until that is known."""

    source: OpenSource
    values: np.ndarray | None = None

    def of_row(self, offset: int, starts: np.ndarray) -> np.ndarray:
        """A number for each answer of the row from token `offset` on: float32, in their order."""
        count = 1 + int(starts[1:].sum())
        if self.values is None:
            return np.zeros(count, np.float32)
        first = self.source.tokens.document_at(offset)
        return self.values[first : first + count]


def check_rows(source: OpenSource, where: str, seq_length: int, bounds: DocumentBounds) -> None:
    """Raises ConfigError where packed samples would be cut, or would see each other, or are of another kind."""
    if (source.mask is not None and source.mask.holds_pairs) != bounds.pairs:
        raise ConfigError(_other_kind(where, bounds))
    if source.mask is None:
        return
    row, problems = source.mask.row_length, []
    if row != seq_length:
        rule = f"holds rows of {row:,} tokens of packed samples, model.seq_length is {seq_length:,}"
        problems.append(Problem(where, rule, f"set model.seq_length={row}, or make the rows with that --seq-length"))
    if not bounds.mask_attention:
        rule = "holds packed samples, which would see each other"
        problems.append(Problem(where, rule, "set data.document_mask=true"))
    if problems:
        raise ConfigError(problems)


def _other_kind(where: str, bounds: DocumentBounds) -> Problem:
    if bounds.pairs:
        rule, fix = "holds no pairs of answers, which finetune.dpo learns from", "make it with `data chat --pairs`"
        return Problem(where, rule, f"{fix}, or leave finetune.dpo out")
    return Problem(
        where, "holds pairs of a chosen and a rejected answer", "set finetune.dpo={}, which learns from them"
    )


def counted(source: OpenSource, offset: int, length: int) -> np.ndarray | None:
    """Which of the `length` tokens from `offset` on have a label that counts, float32; None: all."""
    if source.mask is None:
        return None
    flags = source.mask.read(offset + 1, length)
    return ((flags == ANSWER) | (flags == REJECTED)).astype(np.float32)


def _stacked(masks: Sequence[np.ndarray | None], length: int) -> torch.Tensor | None:
    if all(mask is None for mask in masks):
        return None
    return torch.from_numpy(np.stack([np.ones(length, np.float32) if mask is None else mask for mask in masks]))


def prefetch(
    read: Callable[[Sequence[int]], Batch], requests: Iterable[Sequence[int]], num_workers: int, depth: int
) -> Generator[Batch, None, None]:
    """`map(read, requests)`, with up to `depth` requests read ahead by `num_workers` threads.

    An error of a request is raised when its turn comes. Closing the iterator, or dropping it, ends the threads.
    """
    if num_workers == 0:
        yield from map(read, requests)
        return
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="data")
    try:
        for request in requests:
            waiting.append(pool.submit(read, request))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_ids(tokens: np.ndarray, file: IndexedTokens, offset: int, vocab_size: int) -> None:
    if tokens.max() < vocab_size and (tokens.dtype.kind == "u" or tokens.min() >= 0):
        return
    at = int(np.flatnonzero((tokens < 0) | (tokens.astype(np.int64) >= vocab_size))[0])
    raise DataError(
        f"{bin_path(file.prefix)}: token {offset + at:,} (byte {(offset + at) * file.dtype.itemsize:,}) is "
        f"{tokens[at]}, but ids must be in [0, model.vocab_size = {vocab_size})\n  fix: set model.vocab_size to the "
        "size of the tokenizer the file was made with, or tokenize the text again"
    )


def make_batch(rows: Sequence[np.ndarray], mask: torch.Tensor | None = None, starts: np.ndarray | None = None) -> Batch:
    """A batch of rows of seq_length + 1 tokens.

    Args:
        mask: loss mask `[b, s]`; None: every position counts.
        starts: bool `[b, s + 1]`, where a document begins in a row; None: documents are not kept apart.
    """
    count, length = len(rows), len(rows[0]) - 1
    tokens = np.empty((count, length), dtype=np.int64)
    labels = np.empty((count, length), dtype=np.int64)
    for number, row in enumerate(rows):
        tokens[number] = row[:-1]
        labels[number] = row[1:]
    ones, steps = _constant_parts(count, length)
    batch = Batch(torch.from_numpy(tokens), torch.from_numpy(labels), ones if mask is None else mask, steps)
    return batch if starts is None else _with_documents(batch, starts[:, :-1])


@lru_cache(maxsize=8)
def _constant_parts(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss mask and positions of a plain batch, shared by all of its shape."""
    return torch.ones(count, length), torch.arange(length).repeat(count, 1)


def _with_documents(batch: Batch, starts: np.ndarray) -> Batch:
    """The batch with positions, numbers and bounds of its documents."""
    count, length = starts.shape
    steps = np.arange(length)
    begins = np.maximum.accumulate(np.where(starts, steps, 0), axis=1)
    first = starts.copy()
    first[:, 0] = True
    bounds = np.append(np.flatnonzero(first.ravel()), count * length)
    return replace(
        batch,
        position_ids=torch.from_numpy(steps - begins),
        document_ids=torch.from_numpy(np.cumsum(starts, axis=1, dtype=np.int32)),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
    )


def _with_answers(batch: Batch, reference: Sequence[np.ndarray]) -> Batch:
    """The batch of pairs with the number of each label's answer, and what the base says of them."""
    assert batch.document_ids is not None, "packed samples are kept apart"
    firsts = np.cumsum([0, *map(len, reference)])
    numbers = batch.document_ids.long() + torch.from_numpy(firsts[:-1, None])
    ids = torch.where(batch.loss_mask > 0, numbers, int(firsts[-1]))
    return replace(batch, answer_ids=ids, reference=torch.from_numpy(np.concatenate(reference).astype(np.float32)))
