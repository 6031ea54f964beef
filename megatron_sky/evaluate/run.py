"""`eval loss` and `eval leakage`: all is read and checked first, then each model is loaded and scored in turn."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint import state
from megatron_sky.config.schema import ParallelConfig
from megatron_sky.config.validate import find_problems
from megatron_sky.data.sampling.run_plan import tokens_given
from megatron_sky.distributed.context import ParallelContext, open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import CheckpointError, ConfigError, DataError, Problem
from megatron_sky.evaluate import leakage, overlap, results, tables, write
from megatron_sky.evaluate.checkpoints import NATIVE, Checkpoint, open_checkpoints
from megatron_sky.evaluate.documents import Document, Domain, parse_data, read_domain
from megatron_sky.evaluate.metrics import DocumentLoss, figures_of
from megatron_sky.evaluate.reference import GENERATORS, generate_documents
from megatron_sky.evaluate.windows import Span, cut_spans, num_predictions
from megatron_sky.log import get_logger
from megatron_sky.tokenizer.coder import TextCoder, file_coder

log = get_logger(__name__)

_CHARACTERS_PER_TOKEN = 3  # the report cuts a text at context / 3 characters


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


def evaluate_loss(
    given: Sequence[str],
    data: Sequence[str],
    options: Options,
    *,
    reference_tokenizer: Path | None = None,
    out: Path | None = None,
    info: RankInfo | None = None,
) -> results.LossResults:
    """Losses of the checkpoints `given` on the domains of `data` (NAME=FILE); rank 0 writes them into `out` after each.

    A model whose losses are not finite is among the results' `failed`. Collective where `info` is of several ranks.
    Raises SkyError for everything wrong with the input, and where no model has finite losses.
    """
    info = info or RankInfo()
    checkpoints = open_checkpoints(given)
    reference = file_coder(reference_tokenizer) if reference_tokenizer is not None else checkpoints[0].coder
    context = _context(checkpoints, options)
    characters = _characters(options, context // _CHARACTERS_PER_TOKEN)
    domains = [_domain(name, files, characters, options) for name, files in parse_data(data).items()]
    if reference_tokenizer is None and len({each.coder.sha256 for each in checkpoints}) > 1:
        log.warning(
            "the models have different tokenizers and --reference-tokenizer is not given: reference tokens are %s's",
            checkpoints[0].name,
        )
    prepared = [_prepare(each, domains, context, options) for each in checkpoints]
    counts = _reference_tokens(reference, domains, options.begin != "none")
    found = results.LossResults(_setting(context, characters, options, reference), _domain_records(domains), ())
    shown = write.shown_if_cut_short(info, lambda: tables.loss_markdown(found) if found.models else "")
    with shown, _open(checkpoints, options, info, out) as parallel:
        for checkpoint, encoded in zip(checkpoints, prepared, strict=True):
            warnings = _overlaps(checkpoint, domains)
            scored, seconds = _score(checkpoint, encoded, options, parallel)
            losses = _document_losses(checkpoint, domains, encoded, scored, counts)
            documents = _all(losses)
            if failure := _not_finite(checkpoint, documents):
                found, documents = replace(found, failed=(*found.failed, failure)), []
            else:
                record = _record(checkpoint, context, options, seconds, warnings)
                by_domain = {name: figures_of(some) for name, some in losses.items()}
                model = results.ModelLosses(record, by_domain, figures_of(documents))
                found = replace(found, models=(*found.models, model))
            if found.models and info.rank == 0:
                write.write_loss(found, out, documents)
    if not found.models:
        raise failure_of(found)
    return found


def evaluate_leakage(
    given: Sequence[str],
    files: dict[str, Sequence[str]],
    options: Options,
    *,
    generate: str | None = None,
    published: Path | None = None,
    seed: int = 0,
    margin: float = leakage.MARGIN,
    out: Path | None = None,
    info: RankInfo | None = None,
) -> results.LeakageResults:
    """Signs of leakage in the checkpoints `given`; `files` has the sets train, test and reference.

    Without reference files, `generate` names the generator (see `reference`), and as many documents are made as the
    test split has. `published` is a CSV file of other models' losses, listed first. For the rest see `evaluate_loss`.
    """
    info = info or RankInfo()
    listed = published_leakage(published, margin) if published is not None else ()
    found = results.LeakageResults(margin, leakage.CONFIDENCE, None, (), listed)
    shown = write.shown_if_cut_short(info, lambda: tables.leakage_markdown(found) if found.models else "")
    if not given and listed:
        with shown:
            if info.rank == 0:
                write.write_leakage(found, out)
        return found
    _check_sets(given, files, generate)
    checkpoints = open_checkpoints(given)
    context = _context(checkpoints, options)
    characters = _characters(options, None)
    domains = [_domain(name, files[name], characters, options) for name in leakage.SETS if files[name]]
    if generate is not None:
        domains.append(_generated(generate, len(domains[1].documents), seed, characters))
    prepared = [_prepare(each, domains, context, options) for each in checkpoints]
    found = replace(found, setting=_setting(context, characters, options, None), sets=_domain_records(domains))
    with shown, _open(checkpoints, options, info, out) as parallel:
        for checkpoint, encoded in zip(checkpoints, prepared, strict=True):
            warnings = _overlaps(checkpoint, domains[1:])  # the train split may be trained on
            scored, seconds = _score(checkpoint, encoded, options, parallel)
            documents = _all(_document_losses(checkpoint, domains, encoded, scored, None))
            if failure := _not_finite(checkpoint, documents):
                found, documents = replace(found, failed=(*found.failed, failure)), []
            else:
                record = _record(checkpoint, context, options, seconds, warnings)
                model = _model_leakage(record, encoded, scored, seed, margin)
                found = replace(found, models=(*found.models, model))
            if found.models and info.rank == 0:
                write.write_leakage(found, out, documents)
    if not found.models:
        raise failure_of(found)
    return found


def failure_of(found: results.LossResults | results.LeakageResults) -> CheckpointError:
    """The error that its failed models are."""
    return CheckpointError(
        "\n".join(found.failed) + "\n  fix: weights or activations are not finite; look at an earlier checkpoint, "
        "or compare with `megatron-sky convert check`"
    )


def _check_sets(given: Sequence[str], files: dict[str, Sequence[str]], generate: str | None) -> None:
    problems = []
    if not given:
        problems.append(Problem("CHECKPOINT", "none is given", "give checkpoints, or --published FILE"))
    problems += [
        Problem(f"--{name}", "is needed", f"give the benchmark's {name} split as JSONL")
        for name in (leakage.TRAIN, leakage.TEST)
        if not files[name]
    ]
    if bool(files[leakage.REFERENCE]) == (generate is not None):
        rule = "exactly one of it and --generate-reference is needed"
        problems.append(Problem("--reference", rule, f"as --generate-reference {GENERATORS[0]}"))
    if generate is not None and generate not in GENERATORS:
        problems.append(Problem("--generate-reference", f"must be one of {', '.join(GENERATORS)}", value=generate))
    if problems:
        raise ConfigError(problems)


def published_leakage(path: Path, margin: float = leakage.MARGIN) -> tuple[results.ModelLeakage, ...]:
    """Models of which a CSV file (columns model, L_test, L_train, L_ref) gives the losses. Raises DataError."""
    import csv

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        losses = [(row["model"], *(float(row[name]) for name in ("L_test", "L_train", "L_ref"))) for row in rows]
        if bad := [name for name, *values in losses if not all(0 < each < math.inf for each in values)]:
            raise ValueError(f"a loss of {bad[0]} is no positive number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: can't be read as published losses: {error}\n"
            "  fix: give a CSV file with the columns model, L_test, L_train, L_ref"
        ) from error
    return tuple(_judged(results.ModelRecord(name), [leakage.published(*values)], margin) for name, *values in losses)


def _context(checkpoints: Sequence[Checkpoint], options: Options) -> int:
    smallest = min(checkpoints, key=lambda each: each.context)
    if options.context is not None and options.context > smallest.context:
        raise ConfigError(
            Problem(
                "--context",
                f"is more than the {smallest.context:,} tokens that {smallest.name} was made for",
                f"give at most {smallest.context:,}",
                options.context,
            )
        )
    context = options.context or smallest.context
    if options.stride is not None and options.stride > context:
        raise ConfigError(Problem("--stride", f"must be at most the context, {context:,}", value=options.stride))
    return context


def _characters(options: Options, default: int | None) -> int | None:
    """Where texts are cut; None: nowhere."""
    return default if options.max_characters is None else options.max_characters or None


def _domain(name: str, files: Sequence[str], characters: int | None, options: Options) -> Domain:
    return read_domain(name, files, keys=options.keys, max_characters=characters, max_documents=options.max_documents)


def _generated(kind: str, count: int, seed: int, characters: int | None) -> Domain:
    texts = generate_documents(kind, count, seed)
    documents = tuple(Document(number, text, text[:characters]) for number, text in enumerate(texts))
    return Domain(leakage.REFERENCE, (f"generated: {kind}, seed {seed}",), documents, 0)


def _prepare(checkpoint: Checkpoint, domains: Sequence[Domain], context: int, options: Options) -> list[list[Encoded]]:
    """Every domain's documents as the model's spans. Raises DataError for documents longer than the context."""
    begin = checkpoint.coder.begin_id(options.begin)
    prepared = []
    for domain in domains:
        coded = [np.array(checkpoint.coder.encode(each.text), np.int64) for each in domain.documents]
        begins = begin is not None
        longer = [n for n, ids in enumerate(coded) if num_predictions(len(ids), begins) > context]
        if longer and options.stride is None:
            raise DataError(_told_long(checkpoint, domain, coded, longer, context))
        prepared.append(
            [
                Encoded(document, ids, cut_spans(ids, begin=begin, context=context, stride=options.stride))
                for document, ids in zip(domain.documents, coded, strict=True)
            ]
        )
        if not any(each.spans for each in prepared[-1]):
            raise DataError(f"domain {domain.name}: no document gives {checkpoint.name} a token to predict")
    return prepared


def _told_long(checkpoint: Checkpoint, domain: Domain, coded: list, longer: list[int], context: int) -> str:
    first = longer[0]
    return (
        f"domain {domain.name}: {len(longer)} of {len(coded)} documents are longer than the context of {context:,} "
        f"tokens; document {first} (counted from 0) has {len(coded[first]):,} as {checkpoint.name}'s tokens\n"
        f"  fix: cut them shorter with --max-chars, or score them by sliding windows with --stride {context // 2}"
    )


def _reference_tokens(reference: TextCoder, domains: Sequence[Domain], begins: bool) -> dict[str, list[int]]:
    """Tokens of each document by the reference tokenizer, counted as a model's own are; at least 1."""
    return {
        domain.name: [max(1, num_predictions(len(reference.encode(each.text)), begins)) for each in domain.documents]
        for domain in domains
    }


def _open(checkpoints: Sequence[Checkpoint], options: Options, info: RankInfo, out: Path | None):
    """The context that all models run in; the split is checked against each native model first, and `out` is tried."""
    parallel = ParallelConfig(tp_size=options.tp_size, pp_size=options.pp_size, distributed_optimizer=False)
    for each in checkpoints:
        if each.kind == NATIVE:
            config = state.read_saved(each.path).config
            wide = config.precision.model_copy(update={"fp8": None})  # products in 8 bits are training's alone
            asked = config.model_copy(update={"parallel": parallel, "precision": wide})
            found = find_problems(asked, info.world_size)
            wrong = [problem for problem in found if problem.where.startswith(("parallel.", "model."))]
            if wrong:
                raise ConfigError(wrong)
    if info.rank == 0:
        write.check_out(out)
    return open_context(parallel, info, warn=log.warning)


def _score(
    checkpoint: Checkpoint, encoded: list[list[Encoded]], options: Options, parallel: ParallelContext
) -> tuple[list[list[np.ndarray]], float]:
    """(each document's token losses, by domain; the seconds they took)."""
    from megatron_sky.evaluate.scoring import score_spans

    model = checkpoint.load(parallel)
    spans = [span for documents in encoded for each in documents for span in each.spans]
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
        [np.concatenate([none, *(next(scores).losses for _ in each.spans)]) for each in documents]
        for documents in encoded
    ]
    return losses, seconds


def _record(
    checkpoint: Checkpoint, context: int, options: Options, seconds: float, warnings: Sequence[str]
) -> results.ModelRecord:
    return results.ModelRecord(
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
    saved = state.read_saved(checkpoint.path)
    given = tokens_given(saved.data, saved.progress["consumed_samples"])
    listed = saved.config.data.train
    untold = overlap.untold_data({each.name for each in listed}, given, saved.config.checkpoint.init_from)
    sources = [(each.name, each.path) for each in listed if given.get(each.name, 1)]
    asked = [
        (
            domain.name,
            [path for path in domain.files if Path(path).is_file()],  # a generated set has none
            [checkpoint.coder.encode(each.whole) for each in domain.documents],
        )
        for domain in domains
    ]
    found, unknown = overlap.find_overlaps(asked, sources, tokenizer_sha256=checkpoint.coder.sha256)
    for each in (*untold, *unknown):
        log.info("%s: %s", checkpoint.name, each)
    for each in found:
        log.warning("%s: %s", checkpoint.name, each)
    return [str(each) for each in found]


def _document_losses(
    checkpoint: Checkpoint,
    domains: Sequence[Domain],
    encoded: list[list[Encoded]],
    scored: list[list[np.ndarray]],
    counts: dict[str, list[int]] | None,
) -> dict[str, list[DocumentLoss]]:
    """Domain -> its documents' losses; those without a prediction are left out."""
    found: dict[str, list[DocumentLoss]] = {}
    for domain, documents, losses in zip(domains, encoded, scored, strict=True):
        found[domain.name] = [
            DocumentLoss(
                domain=domain.name,
                document=each.document.number,
                sha256=each.document.sha256,
                characters=len(each.document.text),
                bytes=each.document.num_bytes,
                tokens=len(own),
                reference_tokens=len(own) if counts is None else counts[domain.name][each.document.number],
                loss_sum=float(own.sum(dtype=np.float64)),
            )
            for each, own in zip(documents, losses, strict=True)
            if len(own)
        ]
    return found


def _all(losses: dict[str, list[DocumentLoss]]) -> list[DocumentLoss]:
    return list(itertools.chain.from_iterable(losses.values()))


def _not_finite(checkpoint: Checkpoint, losses: Sequence[DocumentLoss]) -> str | None:
    """What is wrong with a model whose losses are not all finite, told at once; the same on every rank."""
    bad = [each for each in losses if not math.isfinite(each.loss_sum)]
    if not bad:
        return None
    failure = (
        f"{checkpoint.name} ({checkpoint.path}): the loss of {len(bad)} of {len(losses)} documents is "
        f"{bad[0].loss_sum}; the first is document {bad[0].document} (counted from 0) of domain {bad[0].domain}"
    )
    log.error("%s", failure)
    return failure


def _model_leakage(
    record: results.ModelRecord, encoded: list[list[Encoded]], scored: list[list[np.ndarray]], seed: int, margin: float
) -> results.ModelLeakage:
    sets = {}
    for name, documents, losses in zip(leakage.SETS, encoded, scored, strict=True):
        kept = [
            (each.ids[len(each.ids) - len(own) :], own) for each, own in zip(documents, losses, strict=True) if len(own)
        ]
        sets[name] = leakage.SetLosses.of([ids for ids, _ in kept], [own for _, own in kept])
    return _judged(record, leakage.compare(sets, seed=seed), margin)


def _judged(
    record: results.ModelRecord, comparisons: Sequence[leakage.Comparison], margin: float
) -> results.ModelLeakage:
    return results.ModelLeakage(
        record,
        tuple(comparisons),
        leakage.judge(comparisons, leakage.verdict_test, margin),
        leakage.judge(comparisons, leakage.verdict_train, margin),
    )


def _setting(context: int, characters: int | None, options: Options, reference: TextCoder | None) -> results.Setting:
    return results.Setting(
        context=context,
        max_characters=characters,
        stride=options.stride,
        max_documents=options.max_documents,
        begin=options.begin,
        reference_tokenizer=reference.name if reference is not None else None,
        reference_sha256=reference.sha256 if reference is not None else None,
    )


def _domain_records(domains: Sequence[Domain]) -> tuple[results.DomainRecord, ...]:
    return tuple(
        results.DomainRecord(
            name=each.name,
            files=each.files,
            documents=len(each.documents),
            empty=each.empty,
            cut=sum(len(one.whole) > len(one.text) for one in each.documents),
        )
        for each in domains
    )
