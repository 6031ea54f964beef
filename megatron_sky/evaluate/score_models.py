"""Models scored on documents, one after another: what `eval loss` and `eval leakage` have in common.

All texts are read and encoded, and all that can be wrong is found, before the first model is loaded. After each model
the results are written anew.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic

import numpy as np

from megatron_sky.checkpoint.description import read_description
from megatron_sky.config.schema import ParallelConfig
from megatron_sky.config.validate import find_problems
from megatron_sky.data.sampling.run_plan import tokens_given
from megatron_sky.distributed.context import ParallelContext, open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import CheckpointError, ConfigError, DataError
from megatron_sky.evaluate import overlap, write
from megatron_sky.evaluate.documents import Document, Domain
from megatron_sky.evaluate.metrics import DocumentLoss
from megatron_sky.evaluate.models import load_model
from megatron_sky.evaluate.results import ModelRecord, Results
from megatron_sky.evaluate.windows import Span, cut_spans, num_predictions
from megatron_sky.inference.checkpoints import NATIVE, Checkpoint
from megatron_sky.inference.model import Model
from megatron_sky.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Options:
    """How to score.

    Attributes:
        keys: names of the texts in a line of the data.
        context: tokens; None: the smallest of the models' contexts.
        max_characters: length at which texts are cut; None: the verb's own default; 0: whole documents.
        stride: tokens that the windows over a longer document advance; None: such a document is an error.
        begin: what goes before a document, see `TextCoder.begin_id`.
        batch_tokens: tokens of a batch, padding included.
        tp_size, pp_size: how a native model is split over ranks; what remains is data-parallel.
    """

    keys: tuple[str, ...] = ("text",)
    context: int | None = None
    max_characters: int | None = None
    max_documents: int | None = None
    stride: int | None = None
    begin: str = "auto"
    batch_tokens: int = 4096
    tp_size: int = 1
    pp_size: int = 1


@dataclass(frozen=True)
class Encoded:
    """A document as one model's tokens, and as spans. Documents without a prediction have no span."""

    document: Document
    ids: np.ndarray
    spans: list[Span]


@dataclass(frozen=True)
class Scored:
    """One model's losses: of each domain's documents as they were encoded, token by token and summed.

    Documents without a prediction have no entry in `losses`.
    """

    encoded: list[list[Encoded]]
    tokens: list[list[np.ndarray]]
    losses: dict[str, list[DocumentLoss]]

    @property
    def documents(self) -> list[DocumentLoss]:
        return list(itertools.chain.from_iterable(self.losses.values()))


@dataclass(frozen=True)
class Evaluation(Generic[Results]):
    """What is to be scored, and what a verb makes of one model's losses.

    Attributes:
        domains: the documents.
        tests: those domains that no model is meant to have been trained on.
        reference_tokens: of each document of a domain, by the tokenizer that normalises; None: the model's own count.
        with_model: the verb's results, and beside them those of one more model.
        markdown: the tables of all results.
        write: writes results, and the newest model's documents, into a folder, if one is given.
    """

    domains: Sequence[Domain]
    tests: Sequence[Domain]
    reference_tokens: dict[str, list[int]] | None
    with_model: Callable[[Results, ModelRecord, Scored], Results]
    markdown: Callable[[Results], str]
    write: Callable[[Results, Path | None, Sequence[DocumentLoss]], None]


def evaluate_models(
    evaluation: Evaluation[Results],
    checkpoints: Sequence[Checkpoint],
    results: Results,
    options: Options,
    context: int,
    *,
    out: Path | None,
    info: RankInfo,
) -> Results:
    """`found` with the results of every checkpoint. Collective where `info` is of several ranks.

    A model whose losses are not finite is among the results' `failed`. Raises SkyError for what is wrong with the
    input, and where no model has finite losses.
    """
    prepared = [prepare(checkpoint, evaluation.domains, context, options) for checkpoint in checkpoints]
    partial = write.print_partial_on_error(info, lambda: evaluation.markdown(results) if results.models else "")
    with partial, _open(checkpoints, options, info, out) as parallel:
        for checkpoint, encoded in zip(checkpoints, prepared, strict=True):
            warnings = _overlaps(checkpoint, evaluation.tests)
            checkpoint, model = load_model(checkpoint, parallel)
            tokens, seconds = _score(checkpoint, model, encoded, options, parallel)
            losses = _document_losses(evaluation, encoded, tokens)
            scored = Scored(encoded, tokens, losses)
            documents = scored.documents
            if failure := _not_finite(checkpoint, documents):
                results, documents = replace(results, failed=(*results.failed, failure)), []
            else:
                record = _record(checkpoint, context, options, seconds, warnings)
                results = evaluation.with_model(results, record, scored)
            if results.models and info.rank == 0:
                evaluation.write(results, out, documents)
    if not results.models:
        raise failure_of(results)
    return results


def failure_of(results: Results) -> CheckpointError:
    """The error that its failed models are."""
    return CheckpointError(
        "\n".join(results.failed) + "\n  fix: weights or activations are not finite; look at an earlier checkpoint, "
        "or compare with `megatron-sky convert check`"
    )


def prepare(checkpoint: Checkpoint, domains: Sequence[Domain], context: int, options: Options) -> list[list[Encoded]]:
    """Every domain's documents as the model's spans. Raises DataError for documents longer than the context."""
    begin = checkpoint.coder.begin_id(options.begin)
    prepared = []
    for domain in domains:
        coded = [np.array(checkpoint.coder.encode(document.text), np.int64) for document in domain.documents]
        begins = begin is not None
        longer = [n for n, ids in enumerate(coded) if num_predictions(len(ids), begins) > context]
        if longer and options.stride is None:
            raise DataError(_too_long(checkpoint, domain, coded, longer, context))
        prepared.append(
            [
                Encoded(document, ids, cut_spans(ids, begin=begin, context=context, stride=options.stride))
                for document, ids in zip(domain.documents, coded, strict=True)
            ]
        )
        if not any(document.spans for document in prepared[-1]):
            raise DataError(f"domain {domain.name}: no document gives {checkpoint.name} a token to predict")
    return prepared


def _too_long(checkpoint: Checkpoint, domain: Domain, coded: list, longer: list[int], context: int) -> str:
    first = longer[0]
    return (
        f"domain {domain.name}: {len(longer)} of {len(coded)} documents are longer than the context of {context:,} "
        f"tokens; document {first} (counted from 0) has {len(coded[first]):,} as {checkpoint.name}'s tokens\n"
        f"  fix: cut them shorter with --max-chars, or score them by sliding windows with --stride {context // 2}"
    )


def _open(checkpoints: Sequence[Checkpoint], options: Options, info: RankInfo, out: Path | None):
    """The context that all models run in; the split is checked against each native model first, and `out` is tried."""
    parallel = ParallelConfig(tp_size=options.tp_size, pp_size=options.pp_size, distributed_optimizer=False)
    for checkpoint in checkpoints:
        if checkpoint.kind == NATIVE:
            config = read_description(checkpoint.path).config
            wide = config.precision.model_copy(update={"fp8": None})  # products in 8 bits are training's alone
            asked = config.model_copy(update={"parallel": parallel, "precision": wide})
            problems = find_problems(asked, info.world_size)
            wrong = [problem for problem in problems if problem.where.startswith(("parallel.", "model."))]
            if wrong:
                raise ConfigError(wrong)
    if info.rank == 0:
        write.check_out(out)
    return open_context(parallel, info, warn=log.warning)


def _score(
    checkpoint: Checkpoint, model: Model, encoded: list[list[Encoded]], options: Options, parallel: ParallelContext
) -> tuple[list[list[np.ndarray]], float]:
    """(each document's token losses, by domain; the seconds they took)."""
    from megatron_sky.evaluate.scoring import score_spans

    spans = [span for documents in encoded for document in documents for span in document.spans]
    start = time.monotonic()
    scores = iter(
        score_spans(
            model, spans, batch_tokens=options.batch_tokens, gather=parallel.gather_objects, what=checkpoint.name
        )
    )
    seconds = time.monotonic() - start
    tokens = sum(span.scored for span in spans)
    log.info("%s: %s tokens, %s tokens/s", checkpoint.name, f"{tokens:,}", f"{tokens / seconds:,.0f}")
    none = np.empty(0, np.float32)
    losses = [
        [np.concatenate([none, *(next(scores).losses for _ in document.spans)]) for document in documents]
        for documents in encoded
    ]
    return losses, seconds


def _record(
    checkpoint: Checkpoint, context: int, options: Options, seconds: float, warnings: Sequence[str]
) -> ModelRecord:
    return ModelRecord(
        name=checkpoint.name,
        path=str(checkpoint.path),
        kind=checkpoint.kind,
        step=checkpoint.step,
        consumed_tokens=checkpoint.consumed_tokens,
        context=context,
        tokenizer=checkpoint.coder.name,
        tokenizer_sha256=checkpoint.coder.sha256,
        begin_id=checkpoint.coder.begin_id(options.begin),
        seconds=round(seconds, 3),
        warnings=tuple(warnings),
    )


def _overlaps(checkpoint: Checkpoint, domains: Sequence[Domain]) -> list[str]:
    """Warnings, told at once, for domains that stand in the mixture the model was trained on."""
    if checkpoint.kind != NATIVE:
        log.info("%s: a Hugging Face folder does not tell what it was trained on", checkpoint.name)
        return []
    saved = read_description(checkpoint.path)
    given = tokens_given(saved.data, saved.progress["consumed_samples"])
    listed = saved.config.data.train
    unverifiable = overlap.unverifiable_sources(
        {source.name for source in listed}, given, saved.config.checkpoint.init_from
    )
    sources = [(source.name, source.path) for source in listed if given.get(source.name, 1)]
    asked = [
        (
            domain.name,
            [path for path in domain.files if Path(path).is_file()],  # a generated set has none
            [checkpoint.coder.encode(document.whole) for document in domain.documents],
        )
        for domain in domains
    ]
    overlaps, unknown = overlap.find_overlaps(asked, sources, tokenizer_sha256=checkpoint.coder.sha256)
    for line in (*unverifiable, *unknown):
        log.info("%s: %s", checkpoint.name, line)
    for overlapping in overlaps:
        log.warning("%s: %s", checkpoint.name, overlapping)
    return [str(overlapping) for overlapping in overlaps]


def _document_losses(
    evaluation: Evaluation, encoded: list[list[Encoded]], tokens: list[list[np.ndarray]]
) -> dict[str, list[DocumentLoss]]:
    """Domain -> its documents' losses; those without a prediction are left out."""
    by_domain: dict[str, list[DocumentLoss]] = {}
    counts = evaluation.reference_tokens
    for domain, documents, losses in zip(evaluation.domains, encoded, tokens, strict=True):
        by_domain[domain.name] = [
            DocumentLoss(
                domain=domain.name,
                document=loss.document.number,
                sha256=loss.document.sha256,
                characters=len(loss.document.text),
                bytes=loss.document.num_bytes,
                tokens=len(own),
                reference_tokens=len(own) if counts is None else counts[domain.name][loss.document.number],
                loss_sum=float(own.sum(dtype=np.float64)),
            )
            for loss, own in zip(documents, losses, strict=True)
            if len(own)
        ]
    return by_domain


def _not_finite(checkpoint: Checkpoint, losses: Sequence[DocumentLoss]) -> str | None:
    """What is wrong with a model whose losses are not all finite, told at once; the same on every rank."""
    bad = [loss for loss in losses if not math.isfinite(loss.loss_sum)]
    if not bad:
        return None
    failure = (
        f"{checkpoint.name} ({checkpoint.path}): the loss of {len(bad)} of {len(losses)} documents is "
        f"{bad[0].loss_sum}; the first is document {bad[0].document} (counted from 0) of domain {bad[0].domain}"
    )
    log.error("%s", failure)
    return failure
