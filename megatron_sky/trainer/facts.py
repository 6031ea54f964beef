"""What a run says of itself at its start: on the screen, in run.json, and for the report."""

import socket
from collections.abc import Sequence
from pathlib import Path

from megatron_sky.config import Config
from megatron_sky.config.schema import Ramp, SourceConfig, TokenizerConfig
from megatron_sky.data.loader import TrainingData
from megatron_sky.data.sampling.run_plan import RunPlan
from megatron_sky.data.sampling.shares import SHARE_UNIT
from megatron_sky.data.tokens.meta import Meta
from megatron_sky.distributed import device
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.log import get_logger
from megatron_sky.model.build import BuiltModel
from megatron_sky.model.flops import lora_parameters, num_parameters
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.trainer import run_record
from megatron_sky.trainer.preflight import Preflight
from megatron_sky.trainer.resume import Remaining
from megatron_sky.trainer.sessions import Sessions
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.validation import Validator

log = get_logger(__name__)


def size_in_words(config: Config) -> str:
    """`1,234 parameters`, and how many of adapters alone are trained."""
    size = f"{num_parameters(config.model):,} parameters"
    return (
        size if config.lora is None else f"{size}, {lora_parameters(config.model, config.lora):,} of adapters trained"
    )


def log_run_start(
    config: Config,
    *,
    context: ParallelContext,
    model: BuiltModel,
    state: TrainState,
    sessions: Sessions,
    remaining: Remaining,
    notes: Sequence[str],
    run_dir: Path,
) -> None:
    """Says what will run, with the recipe's notes, and writes it into the run folder. Collective."""
    hosts = sorted(set(context.gather_objects(socket.gethostname())))
    if context.rank != 0:
        return
    log.info(
        "%s, %s on %d rank(s) (%s), %s, backend %s (%s)",
        size_in_words(config),
        context.layout,
        context.world_size,
        device.name(),
        config.precision,
        model.backend,
        model.backend_reason,
    )
    log.info("%s", way_in_words(state, remaining, sessions=sessions, max_steps=config.train.max_steps, run_dir=run_dir))
    if device.products_library() == "oneDNN":
        log.info("fp32 products are oneDNN's, which uses all of this processor (docs/cpu.md)")
    for note in notes:
        log.warning("%s", note)
    run_record.describe(
        run_dir,
        config,
        layout=str(context.layout),
        hosts=hosts,
        device=device.name(),
        resumed_from=state.step or None,
    )


def way_in_words(
    state: TrainState, remaining: Remaining, *, sessions: Sessions, max_steps: int | None, run_dir: Path
) -> str:
    """From where to where a job trains."""
    end = f"{remaining.end_token:,} tokens"
    if remaining.end_token < sessions.last.end_token:
        end += f" (train.max_steps = {max_steps:,})"
    elif sessions.last.name:
        end += f", the end of {sessions.last.name}"
    if not remaining.steps:
        return f"nothing is left to train in {run_dir}: it is at step {state.step}, {end}"
    where = "from the start" if state.step == 0 else f"from step {state.step} ({state.consumed_tokens:,} tokens)"
    return f"training {where}: {remaining.steps} steps to {end}, in {run_dir}"


def token_ratios(tokenizer: TokenizerConfig, validator: Validator, context: ParallelContext) -> dict[str, float]:
    """See `Validator.token_ratios`; empty where the recipe names no reference tokenizer, and on ranks other than 0."""
    if context.rank != 0 or validator.config.reference_tokenizer is None:
        return {}
    assert tokenizer.path is not None, "preflight has refused it"
    return validator.token_ratios(load_tokenizer(tokenizer.path))


def data_facts(sources: Sequence[SourceConfig], data: TrainingData, seen: Preflight) -> dict:
    """What the report tells of the data: tokens and unigram entropy of every source and set (None where a file has no
    description), the planned shares, and other models' losses on the sets."""
    described = [
        _facts(source.name, opened.meta) | {"weight": _mean_weight(source.weight)}
        for source, opened in zip(sources, data.sources, strict=True)
    ]
    known = [facts for facts in described if facts["unigram_entropy"] is not None]
    total = sum(facts["weight"] for facts in known)
    assert seen.sessions is not None, "preflight found no fault"
    return {
        "sources": described,
        "validation": [_facts(name, opened.meta) for name, opened in seen.validation.items()],
        "references": seen.references,
        "mixture": _planned_shares(data, seen.sessions),
        "unigram_entropy": sum(facts["weight"] * facts["unigram_entropy"] for facts in known) / total
        if total
        else None,
    }


def _facts(name: str, meta: Meta | None) -> dict:
    return {
        "name": name,
        "tokens": meta.num_tokens if meta else None,
        "unigram_entropy": meta.unigram_entropy if meta else None,
    }


def _mean_weight(weight: float | Ramp) -> float:
    return (weight.start + weight.end) / 2 if isinstance(weight, Ramp) else weight


def _planned_shares(data: TrainingData, sessions: Sessions) -> list[dict]:
    """Each stretch of the plan: its tokens, and every source's share at its two ends; none in megatron-core's order."""
    length, segments = data.seq_length, data.plan.segments if isinstance(data.plan, RunPlan) else ()
    ends = [*(segment.first_sample for segment in segments[1:]), *(last.total_samples for last in segments[-1:])]
    return [
        {
            "session": sessions.at(segment.first_sample).name,
            "first_token": segment.first_sample * length,
            "end_token": end * length,
            "shares": {
                source.name: [first / SHARE_UNIT, last / SHARE_UNIT]
                for source, (first, last) in zip(segment.sources, segment.shares, strict=True)
            },
        }
        for segment, end in zip(segments, ends, strict=True)
    ]
