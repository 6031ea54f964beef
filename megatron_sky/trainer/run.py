"""A run from recipe to last checkpoint, as one rank sees it: join, build, resume, fit."""

import contextlib
import socket
import time
from pathlib import Path

from megatron_sky.checkpoint import state as checkpoints
from megatron_sky.checkpoint import store
from megatron_sky.config import Config
from megatron_sky.config.validate import check, find_notes
from megatron_sky.data.loader import TrainData, prefetch
from megatron_sky.data.meta import Meta, check_source
from megatron_sky.data.tokenizer import load_tokenizer
from megatron_sky.distributed import device
from megatron_sky.distributed.context import ParallelContext, open_context
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import CheckpointError, DataError
from megatron_sky.log import get_logger, setup_logging
from megatron_sky.model.build import BuiltModel, build_model
from megatron_sky.model.flops import num_parameters
from megatron_sky.optim.build import build_optimizer
from megatron_sky.optim.schedule import run_length
from megatron_sky.trainer import run_folder
from megatron_sky.trainer.batches import training_requests
from megatron_sky.trainer.loop import Trainer
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepRunner
from megatron_sky.trainer.validation import Validator

log = get_logger(__name__)


def check_before(config: Config, world_size: int) -> TrainData:
    """Everything that can be known before a process is started: rules, data files, run folder. Returns the data.

    Raises the SkyError of what is wrong. Needs no process group and no model.
    """
    check(config, world_size)
    data = open_data(config)
    run_folder.prepare(Path(config.train.run_dir))
    return data


def open_data(config: Config) -> TrainData:
    """The training mixture, opened and checked; validation files are checked too."""
    tokenizer_hash = load_tokenizer(config.tokenizer.path).sha256 if config.tokenizer.path else None
    problems = []
    for each in (*config.data.train, *config.validation.sets):
        try:
            check_source(each.path, vocab_size=config.model.vocab_size, tokenizer_sha256=tokenizer_hash)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return TrainData(
        config.data,
        seq_length=config.model.seq_length,
        vocab_size=config.model.vocab_size,
        total_samples=length_of(config)[1],
        tokenizer_sha256=tokenizer_hash,
    )


def length_of(config: Config, consumed_samples: int = 0) -> tuple[int, int]:
    """(steps from `consumed_samples` to the end, samples at the end) of the recipe's run."""
    return run_length(
        config.train.tokens,
        seq_length=config.model.seq_length,
        full_size=config.train.global_batch_size,
        rampup=config.train.batch_rampup,
        consumed_samples=consumed_samples,
    )


def train(config: Config, info: RankInfo) -> None:
    """Trains, as rank `info.rank`, until the recipe's budget is met; continues the run folder's run if it has one."""
    run_dir = Path(config.train.run_dir)
    data = check_before(config, info.world_size)
    setup_logging(info.rank, info.world_size, run_dir)
    lock = run_folder.locked(run_dir, log.warning) if info.rank == 0 else contextlib.nullcontext()
    with lock, open_context(config.parallel, info, num_threads=config.train.num_threads) as context:
        _train(config, context, data, run_dir)


def _train(config: Config, context: ParallelContext, data: TrainData, run_dir: Path) -> None:
    folder, state = _starting_point(config, context, data, run_dir)
    model = _build(config, context, fill=folder is None and config.checkpoint.init_from is None)
    runner = StepRunner(
        model, context=context, seq_length=config.model.seq_length, micro_batch_size=config.train.micro_batch_size
    )
    optimizer = build_optimizer(
        config.optimizer,
        schedule=config.schedule,
        parallel=config.parallel,
        precision=config.precision,
        chunks=model.chunks,
    )
    _fill(config, context, model, optimizer, folder)
    validator = Validator(
        config.validation,
        runner=runner,
        context=context,
        seq_length=config.model.seq_length,
        vocab_size=config.model.vocab_size,
        micro_batch_size=config.train.micro_batch_size,
    )
    steps_left, _ = length_of(config, state.consumed_samples)
    _tell(config, context, model, state, steps_left, run_dir)
    requests = training_requests(
        config.train, context=context, seq_length=config.model.seq_length, consumed_samples=state.consumed_samples
    )
    with (
        Observer(
            config, context=context, total_steps=state.step + steps_left, state=state, run_dir=run_dir
        ) as observer,
        contextlib.closing(
            prefetch(data.read, requests, num_workers=config.data.num_workers, depth=config.data.prefetch_batches)
        ) as batches,
    ):
        observer.event(
            "start" if folder is None else "resume",
            step=state.step,
            layout=str(context.layout),
            world_size=context.world_size,
        )
        observer.event("data", **_data_facts(config, data, validator))
        Trainer(
            train=config.train,
            schedule=config.schedule,
            optimizer_config=config.optimizer,
            checkpoint=config.checkpoint,
            context=context,
            runner=runner,
            optimizer=optimizer,
            batches=batches,
            validator=validator,
            observer=observer,
            state=state,
            save=lambda state: _save(config, context, model, optimizer, data, state, run_dir, observer),
            has_dropout=config.model.hidden_dropout > 0 or config.model.attention_dropout > 0,
        ).fit()


def _starting_point(
    config: Config, context: ParallelContext, data: TrainData, run_dir: Path
) -> tuple[Path | None, TrainState]:
    """The checkpoint to continue from, if the run has one, and the progress it holds. Collective."""
    found = {"folder": None, "failure": None}
    if context.rank == 0:  # one rank reads and verifies; the others would only repeat the reading
        try:
            found["folder"] = store.find_latest(run_dir, log.warning)
        except CheckpointError as error:
            found["failure"] = str(error)
    found = context.gather_objects(found)[0]
    if found["failure"]:
        raise CheckpointError(found["failure"])
    folder = found["folder"]
    if folder is None:
        return None, TrainState()
    saved = checkpoints.read_saved(folder)
    checkpoints.check_same_model(saved.config.model, config.model, folder)
    _check_same_data(saved, data)
    if context.rank == 0 and config.checkpoint.init_from:
        log.info("checkpoint.init_from is not used: the run continues from its own %s", folder.name)
    return folder, TrainState(**saved.progress)


def _check_same_data(saved: checkpoints.Saved, data: TrainData) -> None:
    """A changed mixture would silently repeat or skip data."""
    now = data.plan.fingerprint()
    differing = [
        f"  {key}: {saved.data.get(key)!r} in the checkpoint, {now.get(key)!r} now"
        for key in sorted(saved.data.keys() | now.keys())
        if saved.data.get(key) != now.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{saved.folder}: was trained on other data than the recipe names, and would repeat or skip samples:\n"
            + "\n".join(differing)
            + "\n  mend: restore the recipe's data section, or start a new run with "
            f"checkpoint.init_from={saved.folder} in another train.run_dir"
        )


def _build(config: Config, context: ParallelContext, fill: bool) -> BuiltModel:
    context.seed_step(config.train.seed, 0)
    return build_model(
        config.model,
        parallel=config.parallel,
        precision=config.precision,
        train=config.train,
        context=context,
        init=fill,
    )


def _fill(config: Config, context: ParallelContext, model: BuiltModel, optimizer, folder: Path | None) -> None:
    """Weights (and optimizer) from the run's own checkpoint, or weights alone from init_from."""
    if folder is not None:
        checkpoints.load(folder, context=context, chunks=model.chunks, optimizer=optimizer)
    elif config.checkpoint.init_from is not None:
        source = store.resolve(Path(config.checkpoint.init_from), log.warning)
        checkpoints.check_same_model(checkpoints.read_saved(source).config.model, config.model, source)
        checkpoints.load(source, context=context, chunks=model.chunks)
        optimizer.reload_model_params()
        log.info("weights from %s", source)


def _tell(
    config: Config, context: ParallelContext, model: BuiltModel, state: TrainState, steps_left: int, run_dir: Path
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
        config.precision.dtype,
        model.backend,
        model.backend_reason,
    )
    log.info("training %s: %d steps to %s tokens, in %s", where, steps_left, f"{config.train.tokens:,}", run_dir)
    for note in find_notes(config, context.world_size):
        log.warning("%s", note)
    run_folder.describe(
        run_dir,
        config,
        layout=str(context.layout),
        hosts=hosts,
        device=device.name(),
        resumed_from=state.step or None,
    )


def _save(config, context, model, optimizer, data, state, run_dir, observer) -> None:
    start = time.perf_counter()
    folder = checkpoints.save(
        run_dir,
        config=config,
        context=context,
        chunks=model.chunks,
        optimizer=optimizer if config.checkpoint.save_optimizer else None,
        progress=state.to_dict(),
        data=data.plan.fingerprint(),
    )
    seconds = time.perf_counter() - start
    observer.event("checkpoint", step=state.step, path=f"checkpoints/{folder.name}", seconds=seconds)
    if context.rank == 0:
        log.info("checkpoint %s saved in %.1f s", folder, seconds)
        if config.checkpoint.keep_last is not None:
            for old in store.prune(run_dir, config.checkpoint.keep_last):
                log.info("checkpoint %s deleted (checkpoint.keep_last = %d)", old.name, config.checkpoint.keep_last)


def _data_facts(config: Config, data: TrainData, validator: Validator) -> dict:
    """Tokens and unigram entropy of every source and set, for the report; None where a file has no description."""
    sources = [
        _facts(each.name, meta) | {"weight": _mean_weight(each.weight)}
        for each, meta in zip(config.data.train, data.metas, strict=True)
    ]
    known = [each for each in sources if each["unigram_entropy"] is not None]
    total = sum(each["weight"] for each in known)
    return {
        "sources": sources,
        "validation": [_facts(name, meta) for name, meta in validator.metas.items()],
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
