"""`eval loss` and `eval leakage`: what each reads, and what it makes of the models' losses."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import ConfigError, DataError, Problem
from megatron_sky.evaluate import leakage, results, tables, write
from megatron_sky.evaluate.documents import Document, Domain, parse_data, read_domain
from megatron_sky.evaluate.metrics import figures_of
from megatron_sky.evaluate.models import open_models
from megatron_sky.evaluate.reference import GENERATORS, generate_documents
from megatron_sky.evaluate.score_models import Evaluation, Options, Scored, evaluate_models
from megatron_sky.evaluate.windows import num_predictions
from megatron_sky.files import read_bytes
from megatron_sky.inference.checkpoints import Checkpoint
from megatron_sky.log import get_logger
from megatron_sky.tokenizer.coder import TextCoder, file_coder

log = get_logger(__name__)

_CHARACTERS_PER_TOKEN = 3  # the report cuts a text at context / 3 characters


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
    checkpoints = open_models(given)
    reference = file_coder(reference_tokenizer) if reference_tokenizer is not None else checkpoints[0].coder
    context = _context(checkpoints, options)
    characters = _characters(options, context // _CHARACTERS_PER_TOKEN)
    domains = [_domain(name, files, characters, options) for name, files in parse_data(data).items()]
    if reference_tokenizer is None and len({checkpoint.coder.sha256 for checkpoint in checkpoints}) > 1:
        log.warning(
            "the models have different tokenizers and --reference-tokenizer is not given: reference tokens are %s's",
            checkpoints[0].name,
        )
    evaluation = Evaluation[results.LossResults](
        domains=domains,
        tests=domains,
        reference_tokens=_reference_tokens(reference, domains, options.begin != "none"),
        with_model=_with_losses,
        markdown=tables.loss_markdown,
        write=write.write_loss,
    )
    empty = results.LossResults(_setting(context, characters, options, reference), _domain_records(domains), ())
    return evaluate_models(evaluation, checkpoints, empty, options, context, out=out, info=info or RankInfo())


def _with_losses(before: results.LossResults, record: results.ModelRecord, scored: Scored) -> results.LossResults:
    by_domain = {name: figures_of(some) for name, some in scored.losses.items()}
    losses = results.ModelLosses(record, by_domain, figures_of(scored.documents))
    return replace(before, models=(*before.models, losses))


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
    outcome = results.LeakageResults(margin, leakage.CONFIDENCE, None, (), listed)
    if not given and listed:
        with write.print_partial_on_error(info, lambda: tables.leakage_markdown(outcome)):
            if info.rank == 0:
                write.write_leakage(outcome, out)
        return outcome
    _check_sets(given, files, generate)
    checkpoints = open_models(given)
    context = _context(checkpoints, options)
    characters = _characters(options, None)
    sets = {name: _domain(name, files[name], characters, options) for name in leakage.SETS if files[name]}
    if generate is not None:
        count = len(sets[leakage.TEST].documents)
        sets[leakage.REFERENCE] = _generated(generate, count, seed, characters)
    domains = [sets[name] for name in leakage.SETS]
    evaluation = Evaluation[results.LeakageResults](
        domains=domains,
        tests=[sets[name] for name in leakage.SETS if name != leakage.TRAIN],  # which may be trained on
        reference_tokens=None,
        with_model=lambda before, record, scored: replace(
            before, models=(*before.models, _model_leakage(record, scored, seed, margin))
        ),
        markdown=tables.leakage_markdown,
        write=write.write_leakage,
    )
    outcome = replace(outcome, setting=_setting(context, characters, options, None), sets=_domain_records(domains))
    return evaluate_models(evaluation, checkpoints, outcome, options, context, out=out, info=info)


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
        rows = list(csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")))
        losses = [(row["model"], [float(row[name]) for name in ("L_test", "L_train", "L_ref")]) for row in rows]
        if bad := [name for name, values in losses if not all(0 < value < math.inf for value in values)]:
            raise ValueError(f"a loss of {bad[0]} is no positive number")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path}: can't be read as published losses: {error}\n"
            "  fix: give a CSV file with the columns model, L_test, L_train, L_ref"
        ) from error
    return tuple(_judged(results.ModelRecord(name), [leakage.published(*values)], margin) for name, values in losses)


def _context(checkpoints: Sequence[Checkpoint], options: Options) -> int:
    smallest = min(checkpoints, key=lambda checkpoint: checkpoint.context)
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


def _reference_tokens(reference: TextCoder, domains: Sequence[Domain], begins: bool) -> dict[str, list[int]]:
    """Tokens of each document by the reference tokenizer, counted as a model's own are; at least 1."""
    return {
        domain.name: [max(1, num_predictions(len(reference.encode(doc.text)), begins)) for doc in domain.documents]
        for domain in domains
    }


def _model_leakage(record: results.ModelRecord, scored: Scored, seed: int, margin: float) -> results.ModelLeakage:
    sets = {}
    for name, documents, losses in zip(leakage.SETS, scored.encoded, scored.tokens, strict=True):
        kept = [
            (loss.ids[len(loss.ids) - len(own) :], own) for loss, own in zip(documents, losses, strict=True) if len(own)
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
            name=domain.name,
            files=domain.files,
            documents=len(domain.documents),
            empty=domain.empty,
            cut=sum(len(one.whole) > len(one.text) for one in domain.documents),
        )
        for domain in domains
    )
