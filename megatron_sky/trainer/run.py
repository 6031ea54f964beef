"""A run from recipe to last checkpoint, as one rank sees it: join, build, resume, fit."""

import contextlib
import math
import socket
from collections.abc import Callable
from pathlib import Path

from megatron_sky.checkpoint import state as checkpoints
from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.saver import Saver
from megatron_sky.config import Config
from megatron_sky.config.validate import check, find_notes
from megatron_sky.data.loader import DocumentBounds, TrainData, prefetch
from megatron_sky.data.sampling.shares import SHARE_UNIT
from megatron_sky.data.tokens.meta import Meta, check_source, shared_source
from megatron_sky.distributed import compat, device
from megatron_sky.distributed.context import ParallelContext, open_context
from megatron_sky.distributed.launch import HANG_EXIT_CODE, RankInfo, leave_with, tell_started
from megatron_sky.errors import CheckpointError, ConfigError, DataError, Problem
from megatron_sky.log import get_logger, setup_logging
from megatron_sky.model.build import BuiltModel, build_model
from megatron_sky.model.flops import num_parameters
from megatron_sky.optim.build import build_optimizer
from megatron_sky.optim.schedule import run_length
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.trainer import out_of_memory, run_folder
from megatron_sky.trainer.batches import training_requests
from megatron_sky.trainer.garbage import GarbageCollection
from megatron_sky.trainer.loop import Trainer
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.profiler import Profiler
from megatron_sky.trainer.sessions import Sessions, kept_marks, sessions_of
from megatron_sky.trainer.sessions import find_notes as find_session_notes
from megatron_sky.trainer.signals import LeaveRequests
from megatron_sky.trainer.startup import check_disk, check_machine, rank_facts
from megatron_sky.trainer.state import TrainState, plan_number
from megatron_sky.trainer.step import StepRunner
from megatron_sky.trainer.stragglers import Stragglers
from megatron_sky.trainer.suspects import in_words, name_samples
from megatron_sky.trainer.suspects import write as write_suspects
from megatron_sky.trainer.validation import Validator, read_references
from megatron_sky.trainer.watchdog import Watchdog

log = get_logger(__name__)


def check_before(config: Config, world_size: int) -> TrainData:
    """Everything that can be known before a process is started: rules, data files, run folder. Returns the data.

    Raises the SkyError of what is wrong. Needs no process group and no model.
    """
    check(config, world_size)
    read_references(config.validation)
    _check_reference_tokenizer(config)
    data = open_data(config)
    run_folder.prepare(Path(config.train.run_dir))
    return data


def _check_reference_tokenizer(config: Config) -> None:
    """Raises the SkyError of what would keep `_token_ratios` from its work."""
    path = config.validation.reference_tokenizer
    if path is None:
        return
    load_tokenizer(path)
    if config.tokenizer.path is None:
        fix = "set tokenizer.path, or leave validation.reference_tokenizer out"
        rule = "needs the run's own tokenizer to read its sets"
        raise ConfigError(Problem("validation.reference_tokenizer", rule, fix, path))


def open_data(config: Config) -> TrainData:
    """The training mixture, opened and checked; validation files are checked too.

    Raises DataError telling every file that is not what it should be.
    """
    tokenizer_hash, eod_id, problems = None, None, []
    try:
        if config.tokenizer.path:
            tokenizer = load_tokenizer(config.tokenizer.path)
            tokenizer_hash, eod_id = tokenizer.sha256, tokenizer.eod_id
    except DataError as error:
        problems.append(str(error))
    for each in (*config.data.train, *config.validation.sets):
        try:
            check_source(each.path, vocab_size=config.model.vocab_size, tokenizer_sha256=tokenizer_hash, eod_id=eod_id)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(group_by_fix(problems))
    settings = config.data
    if settings.sampling == "megatron":  # whose order repeats sources without a limit
        settings = settings.model_copy(update={"max_epochs": math.inf})
    mixtures = [session.mixture for session in sessions_of(config).every]
    return TrainData(settings, sessions=mixtures, **_data_arguments(config, tokenizer_hash))


def group_by_fix(problems: list[str]) -> str:
    """Several errors' texts, those of one fix together."""
    by_fix: dict[str, list[str]] = {}
    for text in problems:
        rule, _, fix = text.partition("\n  fix: ")
        by_fix.setdefault(fix, []).append(rule)
    return "\n".join("\n".join(rules) + (f"\n  fix: {fix}" if fix else "") for fix, rules in by_fix.items())


def _data_arguments(config: Config, tokenizer_hash: str | None) -> dict:
    return {
        "seq_length": config.model.seq_length,
        "vocab_size": config.model.vocab_size,
        "tokenizer_sha256": tokenizer_hash,
    }


def _in_megatron_order(config: Config, data: TrainData, run_dir: Path) -> TrainData:
    """The data in the order that the recipe asks for; megatron-core's is built once, by the job's first rank."""
    if config.data.sampling == "plan":
        return data
    from megatron_sky.data.sampling.megatron_order import MegatronTrainData

    tokenizer_hash = data.metas[0].tokenizer.sha256 if data.metas[0] and config.tokenizer.path else None
    return MegatronTrainData(
        config.data,
        cache=run_dir / "index_cache",
        total_samples=sessions_of(config).last.end_sample,
        **_data_arguments(config, tokenizer_hash),
    )


def way_left(config: Config, sessions: Sessions, state: TrainState) -> tuple[int, int]:
    """(steps from `state` to the end of what this job trains, tokens that will have been consumed there)."""
    limit = config.train.max_steps
    steps, samples = run_length(
        sessions.last.end_token,
        seq_length=config.model.seq_length,
        full_size=config.train.global_batch_size,
        rampup=config.train.batch_rampup,
        consumed_samples=state.consumed_samples,
        max_steps=None if limit is None else max(0, limit - state.step),
    )
    return steps, samples * config.model.seq_length


def train(config: Config, info: RankInfo) -> None:
    """Trains, as rank `info.rank`, until the recipe's budget is met; continues the run folder's run if it has one.

    Raises LeftEarly where the job was asked to leave: everything is saved then.
    """
    run_dir = Path(config.train.run_dir)
    data = check_before(config, info.world_size)
    setup_logging(info.rank, info.world_size, run_dir)
    device.setup(
        info.local_rank, config.train.num_threads, info.local_world_size, deterministic=config.kernels.deterministic
    )
    check_machine(config)
    compat.start_result_collector()
    lock = run_folder.locked(run_dir, log.warning) if info.rank == 0 else contextlib.nullcontext()
    with (
        lock as held,
        LeaveRequests(config.resilience) as leave,
        open_context(
            config.parallel,
            info,
            facts=rank_facts(config, data),
            startup_timeout_seconds=config.resilience.startup_timeout_seconds,
            timeout_seconds=config.resilience.step_timeout_seconds + 60,  # the watchdog's word comes first
            warn=log.warning,
        ) as context,
        Watchdog(
            rank=context.rank,
            world_size=context.world_size,
            store=context.store,
            timeout_seconds=config.resilience.step_timeout_seconds,
            stacks=run_dir / "logs" / f"stacks_{context.rank:05d}.txt",
            end=lambda message: leave_with(context.rank, message, HANG_EXIT_CODE),
        ) as watchdog,
        out_of_memory.explained(config, context.layout, rank=context.rank, run_dir=run_dir),
    ):
        tell_started()
        _train(config, context, data, run_dir, leave, watchdog, sweeps=bool(held))


def _train(
    config: Config,
    context: ParallelContext,
    data: TrainData,
    run_dir: Path,
    leave: LeaveRequests,
    watchdog: Watchdog,
    sweeps: bool,
) -> None:
    data = _in_megatron_order(config, data, run_dir)
    sessions = sessions_of(config)
    folder, state = _starting_point(config, context, data, run_dir)
    source = _initial_weights(config, context, folder)
    sessions.check_begin(state.consumed_samples)
    if sweeps:  # not before there is a checkpoint to go on from, or no need of one
        run_folder.sweep(run_dir, log.warning)
    if context.rank == 0:
        check_disk(config, run_dir, log.warning)
    model = _build(config, context, fill=folder is None and source is None)
    runner = StepRunner(
        model,
        context=context,
        seq_length=config.model.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        masks_documents=config.data.document_mask,
        beat=watchdog.beat,
    )
    optimizer = build_optimizer(
        config.optimizer,
        schedule=config.schedule,
        parallel=config.parallel,
        precision=config.precision,
        chunks=model.chunks,
    )
    _fill(context, model, optimizer, folder=folder, source=source)
    validator = Validator(
        config.validation,
        runner=runner,
        context=context,
        seq_length=config.model.seq_length,
        vocab_size=config.model.vocab_size,
        micro_batch_size=config.train.micro_batch_size,
        bounds=DocumentBounds.of(config.data),
    )
    saver = Saver(
        run_dir,
        config=config,
        context=context,
        chunks=model.chunks,
        optimizer=optimizer,
        fingerprint=data.plan.fingerprint,
        fp8=model.fp8,
    )
    saver.last_step = state.step if folder is not None else None
    left, total_tokens = way_left(config, sessions, state)
    _tell(config, context, model, state, sessions, (left, total_tokens), run_dir)
    with (
        Observer(
            config,
            context=context,
            total_steps=state.step + left,
            total_tokens=total_tokens,
            state=state,
            run_dir=run_dir,
            token_ratios=_token_ratios(config, validator) if context.rank == 0 else {},
        ) as observer,
        _Files(config, context, data, run_dir, model, optimizer) as files,
        Profiler(config.profile, rank=context.rank, run_dir=run_dir, tell=log.info) as profiler,
        GarbageCollection(config.train.gc_interval) as garbage,
    ):
        observer.event(
            "start" if folder is None else "resume",
            step=state.step,
            layout=str(context.layout),
            world_size=context.world_size,
        )
        observer.event("data", **_data_facts(config, data, validator, sessions))
        for note in _held_out_twice(config, data, validator):
            observer.warn(note)
        Trainer(
            train=config.train,
            sessions=sessions,
            optimizer_config=config.optimizer,
            checkpoint=config.checkpoint,
            resilience=config.resilience,
            context=context,
            runner=runner,
            optimizer=optimizer,
            validator=validator,
            observer=observer,
            saver=saver,
            leave=leave,
            stragglers=Stragglers(config.resilience, context, observer.slow_ranks),
            profiler=profiler,
            garbage=garbage,
            files=files,
            beat=watchdog.beat,
            state=state,
            has_dropout=config.model.hidden_dropout > 0 or config.model.attention_dropout > 0,
        ).fit()


class _Files:
    """The run's data and folder, as the loop asks for them (`loop.RunFiles`)."""

    def __init__(self, config: Config, context: ParallelContext, data: TrainData, run_dir: Path, model, optimizer):
        self._config, self._context, self._data, self._run_dir = config, context, data, run_dir
        self._model, self._optimizer = model, optimizer
        self._open = contextlib.ExitStack()
        self._told: set[str] = set()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exc_info) -> None:
        self._open.close()

    def batches(self, state: TrainState):
        self._open.close()  # the threads that read ahead of another state
        requests = training_requests(
            self._config.train, context=self._context, seq_length=self._config.model.seq_length, state=state
        )
        settings = self._config.data
        ahead = prefetch(self._data.read, requests, num_workers=settings.num_workers, depth=settings.prefetch_batches)
        return self._open.enter_context(contextlib.closing(ahead))

    def rollback(self) -> TrainState | None:
        folder, state = _starting_point(self._config, self._context, self._data, self._run_dir)
        if folder is None:
            return None
        checkpoints.load(
            folder,
            context=self._context,
            chunks=self._model.chunks,
            optimizer=self._optimizer,
            fp8=self._model.fp8,
        )
        return state

    def name_suspects(self, step: int, numbers: list[int]) -> str:
        suspects = name_samples(self._data, numbers)
        if self._context.rank == 0:
            write_suspects(self._run_dir, step, suspects)
        return in_words(suspects)

    def usage(self, state: TrainState) -> list[dict]:
        length = self._config.model.seq_length
        used = plan_number(state.consumed_samples, state.skipped)
        plan = self._data.plan
        return [
            {"name": source.name, "tokens": count * length, "epochs": epochs}
            for source, count, epochs in zip(plan.sources, plan.consumed(used), plan.epochs(used), strict=True)
        ]

    def prune(self, newest: int) -> None:
        keep = self._config.checkpoint
        if self._context.rank != 0 or keep.keep_last is None:
            return
        for old in store.to_prune(
            self._run_dir,
            newest=newest,
            keep_last=keep.keep_last,
            keep_every_tokens=keep.keep_every_tokens,
            marks=kept_marks(self._config),
            warn=self._warn_once,
        ):
            try:
                store.remove(old)
            except OSError as error:
                self._warn_once(f"{old}: can't be deleted, training goes on: {error}")
            else:
                log.info("checkpoint %s deleted (checkpoint.keep_last = %d)", old.name, keep.keep_last)

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)


def _starting_point(
    config: Config, context: ParallelContext, data: TrainData, run_dir: Path
) -> tuple[Path | None, TrainState]:
    """The checkpoint to continue from, if the run has one, and the progress it holds. Collective."""
    folder = _found_by_first_rank(context, lambda: store.find_latest(run_dir, log.warning))
    if folder is None:
        return None, _first_state(config)
    saved = checkpoints.read_saved(folder)
    checkpoints.check_same_model(saved.config.model, config.model, folder)
    state = TrainState.from_dict(saved.progress)
    changed = data.continue_from(saved.data, plan_number(state.consumed_samples, state.skipped))
    if context.rank == 0 and changed:
        log.warning(
            "the mixture or its length has changed since %s: each source goes on from where it stopped", folder.name
        )
    if context.rank == 0 and config.checkpoint.init_from:
        log.info("checkpoint.init_from is not used: the run continues from its own %s", folder.name)
    return folder, state


def _found_by_first_rank(context: ParallelContext, find: Callable[[], Path | None]) -> Path | None:
    """What `find` gives on rank 0, which alone reads and verifies; its failure is every rank's. Collective."""
    folder, failure = None, None
    if context.rank == 0:
        try:
            folder = find()
        except CheckpointError as error:
            failure = str(error)
    folder, failure = context.gather_objects((folder, failure))[0]
    if failure:
        raise CheckpointError(failure)
    return folder


def check_start(config: Config) -> None:
    """Raises CheckpointError where the checkpoint to start from is not whole (by its sizes) or holds another model.

    Quick, for one process before others are started: the run's own newest checkpoint, else `checkpoint.init_from`.
    """
    source = store.find_latest(Path(config.train.run_dir), log.warning, quick=True)
    if source is None and config.checkpoint.init_from is not None:
        source = store.resolve(Path(config.checkpoint.init_from), log.warning, quick=True)
    if source is not None:
        checkpoints.check_same_model(checkpoints.read_saved(source).config.model, config.model, source)


def _initial_weights(config: Config, context: ParallelContext, folder: Path | None) -> Path | None:
    """The checkpoint to take weights alone from, verified; None: the run has its own, or begins anew. Collective."""
    if folder is not None or config.checkpoint.init_from is None:
        return None
    wanted = Path(config.checkpoint.init_from)
    source = _found_by_first_rank(context, lambda: store.resolve(wanted, log.warning))
    checkpoints.check_same_model(checkpoints.read_saved(source).config.model, config.model, source)
    return source


def _first_state(config: Config) -> TrainState:
    """Where a new run begins: at token 0, or, with weights to start from, at the session that was asked for."""
    first = sessions_of(config).first
    if config.checkpoint.init_from is None:
        return TrainState()
    return TrainState(step=first.first_step, consumed_samples=first.first_sample, consumed_tokens=first.first_token)


def _build(config: Config, context: ParallelContext, fill: bool) -> BuiltModel:
    context.seed_step(config.train.seed, 0, for_graphs=config.kernels.cuda_graphs)
    return build_model(
        config.model,
        parallel=config.parallel,
        precision=config.precision,
        train=config.train,
        kernels=config.kernels,
        context=context,
        init=fill,
    )


def _fill(context: ParallelContext, model: BuiltModel, optimizer, *, folder: Path | None, source: Path | None) -> None:
    """Weights and optimizer from the run's own checkpoint `folder`, or weights alone from `source`."""
    if folder is not None:
        checkpoints.load(folder, context=context, chunks=model.chunks, optimizer=optimizer, fp8=model.fp8)
    elif source is not None:
        checkpoints.load(source, context=context, chunks=model.chunks)
        optimizer.reload_model_params()
        log.info("weights from %s", source)


def _tell(
    config: Config,
    context: ParallelContext,
    model: BuiltModel,
    state: TrainState,
    sessions: Sessions,
    way: tuple[int, int],
    run_dir: Path,
) -> None:
    """Says what will run, and writes it into the run folder."""
    hosts = sorted(set(context.gather_objects(socket.gethostname())))
    if context.rank != 0:
        return
    where = "from the start" if state.step == 0 else f"from step {state.step} ({state.consumed_tokens:,} tokens)"
    log.info(
        "%s parameters, %s on %d rank(s) (%s), %s, backend %s (%s)",
        f"{num_parameters(config.model):,}",
        context.layout,
        context.world_size,
        device.name(),
        config.precision,
        model.backend,
        model.backend_reason,
    )
    steps, tokens = way
    whole = tokens >= sessions.last.end_token
    end = ", the end of " + sessions.last.name if whole and sessions.last.name else ""
    end += "" if whole else f" (train.max_steps = {config.train.max_steps:,})"
    if steps:
        log.info("training %s: %d steps to %s tokens%s, in %s", where, steps, f"{tokens:,}", end, run_dir)
    else:
        log.info(
            "nothing is left to train in %s: it is at step %d, %s tokens%s", run_dir, state.step, f"{tokens:,}", end
        )
    for note in (*find_notes(config, context.world_size), *find_session_notes(sessions, config)):
        log.warning("%s", note)
    run_folder.describe(
        run_dir,
        config,
        layout=str(context.layout),
        hosts=hosts,
        device=device.name(),
        resumed_from=state.step or None,
    )


def _token_ratios(config: Config, validator: Validator) -> dict[str, float]:
    """See `Validator.token_ratios`."""
    if config.validation.reference_tokenizer is None:
        return {}
    return validator.token_ratios(load_tokenizer(config.tokenizer.path))


def _held_out_twice(config: Config, data: TrainData, validator: Validator) -> list[str]:
    """Validation sets that were made from a text file that the run also trains on."""
    pairs = [
        (name, source.name, shared_source(meta, train_meta))
        for name, meta in validator.metas.items()
        for source, train_meta in zip(config.data.train, data.metas, strict=True)
    ]
    return [
        f"validation.sets[{name}]: {path} is also in the training source {source}: its loss is no test"
        for name, source, path in pairs
        if path is not None
    ]


def _planned_shares(data: TrainData, sessions: Sessions) -> list[dict]:
    """Each stretch of the plan: its tokens, and every source's share at its two ends; none in megatron-core's order."""
    length, segments = data.seq_length, getattr(data.plan, "segments", ())
    ends = [*(segment.first_sample for segment in segments[1:]), *(each.total_samples for each in segments[-1:])]
    return [
        {
            "session": sessions.at(segment.first_sample).name,
            "first_token": segment.first_sample * length,
            "end_token": end * length,
            "shares": {
                source.name: [start / SHARE_UNIT, end / SHARE_UNIT]
                for source, (start, end) in zip(segment.sources, segment.shares, strict=True)
            },
        }
        for segment, end in zip(segments, ends, strict=True)
    ]


def _data_facts(config: Config, data: TrainData, validator: Validator, sessions: Sessions) -> dict:
    """What the report tells of the data: tokens and unigram entropy of every source and set (None where a file has no
    description), the planned shares, and other models' losses on the sets."""
    sources = [
        _facts(each.name, meta) | {"weight": _mean_weight(each.weight)}
        for each, meta in zip(config.data.train, data.metas, strict=True)
    ]
    known = [each for each in sources if each["unigram_entropy"] is not None]
    total = sum(each["weight"] for each in known)
    return {
        "sources": sources,
        "validation": [_facts(name, meta) for name, meta in validator.metas.items()],
        "references": read_references(config.validation),
        "mixture": _planned_shares(data, sessions),
        "unigram_entropy": sum(e["weight"] * e["unigram_entropy"] for e in known) / total if total else None,
    }


def _facts(name: str, meta: Meta | None) -> dict:
    return {
        "name": name,
        "tokens": meta.num_tokens if meta else None,
        "unigram_entropy": meta.unigram_entropy if meta else None,
    }


def _mean_weight(weight) -> float:
    return weight if isinstance(weight, float | int) else (weight.start + weight.end) / 2
