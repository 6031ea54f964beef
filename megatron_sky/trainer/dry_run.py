"""`train --dry-run`: the whole job checked and told without starting it.

Every pipeline stage is built with the real megatron-core, on process groups whose members do not exist and with
weights that take no memory, so a 512-rank job is checked in seconds on a laptop. The data files are checked as well.
"""

import importlib.util
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from megatron_sky.config import Config
from megatron_sky.config.units import format_count
from megatron_sky.config.validate import backend_problems
from megatron_sky.data.sampling.mixture import mixture_table
from megatron_sky.data.sampling.plan import SamplingPlan
from megatron_sky.distributed import device
from megatron_sky.distributed.context import open_fake_context
from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.errors import DataError, Problem
from megatron_sky.model.build import build_model
from megatron_sky.model.flops import flops_per_token
from megatron_sky.optim.schedule import global_batch_size_at
from megatron_sky.trainer.facts import size_in_words
from megatron_sky.trainer.preflight import Preflight, preflight
from megatron_sky.trainer.sessions import Sessions

GIB = 1 << 30
_OTHER = {"te": "torch", "torch": "te"}


def print_plan(config: Config, world_size: int) -> None:
    """Prints what the recipe would do on `world_size` ranks; raises the SkyError of all that would stop it.

    What data and tokenizer files are lacking is told last, after all that can be said without them.
    """
    seen = look(config, world_size)
    print_job(config, world_size, seen)
    seen.raise_errors()
    print("every check passed")


def look(config: Config, world_size: int) -> Preflight:
    """What there is to be known without starting. Raises all that is wrong but for data, which is among its errors."""
    seen = preflight(config, world_size, machine_problems=_find_backend_problems)
    if any(not isinstance(error, DataError) for error in seen.errors):
        seen.raise_errors()
    return seen


def print_job(config: Config, world_size: int, seen: Preflight) -> None:
    """Prints layout, model, budget, sessions and notes."""
    assert seen.sessions is not None, "the recipe is whole"
    layout = Layout.of(config.parallel, world_size)
    print(f"layout      {layout} on {world_size} rank(s)")
    _print_model(config, layout)
    _print_run(config, layout, seen.sessions)
    _print_sessions(config, seen.sessions, seen.data.plan.segments if seen.data else itertools.repeat(None))
    for note in (*_backend_notes(config), *seen.notes, *seen.damaged):
        print(f"note        {note}")


def _find_backend_problems(config: Config) -> list[Problem]:
    """Where the backend is chosen on the machine that will run, the recipe must suit one of them."""
    if config.model.backend != "auto":
        return []  # its problems are the recipe's
    wrong = {backend: backend_problems(config, backend) for backend in _OTHER}
    return wrong["te"] if all(wrong.values()) else []


def _backend_notes(config: Config) -> list[str]:
    """A lone backend that suits the recipe, and what must be installed where the job will run."""
    if config.model.backend == "te" and importlib.util.find_spec("transformer_engine") is None:
        return ["model.backend=te needs transformer-engine, which is not installed here: the nodes must have it"]
    if config.model.backend != "auto":
        return []
    lone = [name for name, other in _OTHER.items() if backend_problems(config, other)]
    return [f"only the {name} backend can do what the recipe asks for" for name in lone]


@dataclass(frozen=True)
class Held:
    """Parameters of a rank, and how many of them are trained; with adapters the rest is frozen."""

    parameters: int
    trained: int


def stage_parameters(config: Config, layout: Layout) -> list[Held]:
    """What one rank of each pipeline stage holds, from the built model."""
    counts = []
    for stage in range(layout.pp_size):
        rank = layout.rank(Coordinates(tp_rank=0, cp_rank=0, dp_rank=0, pp_rank=stage))
        with open_fake_context(config.parallel, rank, layout.world_size) as context, device.on_meta():
            model = build_model(
                config.model.model_copy(update={"backend": "torch"}),  # the same parameters as the other's
                parallel=config.parallel.model_copy(update={"tp_comm_overlap": False}),
                precision=config.precision,
                train=config.train,
                context=replace(context, device=device.cpu()),
                ddp=False,
                init=False,
                lora=config.lora,
            )
            trained = sum(p.numel() for chunk in model.chunks for p in chunk.parameters() if p.requires_grad)
            counts.append(Held(model.num_parameters(), trained))
    return counts


def state_bytes(config: Config, held: Held, dp_cp_size: int) -> float:
    """Bytes of weights, gradients and optimizer state of a rank; activations not counted.

    16-bit training: 2 for the weight, 4 for its fp32 gradient (2 without grad_reduce_in_fp32), 12 for master weight and
    two moments; fp32: 4, 4 and 8. The distributed optimizer divides the last by the data-parallel ranks. A frozen
    parameter has its weight alone.
    """
    p = config.precision
    if p.dtype == "fp32":
        weight, gradient, sharded = 4, 4, 8
    else:
        weight, gradient, sharded = 2, 4 if p.grad_reduce_in_fp32 else 2, 12
    trained = gradient + sharded / (dp_cp_size if config.parallel.distributed_optimizer else 1)
    return held.parameters * weight + held.trained * trained


def _print_model(config: Config, layout: Layout) -> None:
    print(f"model       {size_in_words(config)}, {flops_per_token(config.model, config.lora):.3g} FLOPs a token")
    for stage, held in enumerate(stage_parameters(config, layout)):
        size = state_bytes(config, held, layout.dp_size * layout.cp_size) / GIB
        trained = "" if held.trained == held.parameters else f" ({held.trained:,} trained)"
        print(
            f"  stage {stage:<4}{held.parameters:,} parameters a rank{trained}, "
            f"{size:.2f} GiB of weights, gradients and optimizer state"
        )


def _print_run(config: Config, layout: Layout, sessions: Sessions) -> None:
    t = config.train
    last = sessions.every[-1]
    first = global_batch_size_at(t.global_batch_size, t.batch_rampup, 0)
    size = f"{first} -> {t.global_batch_size}" if first != t.global_batch_size else f"{t.global_batch_size}"
    step_tokens = _step_tokens(config)
    print(f"run         {last.end_step:,} steps to {format_count(last.end_token)} tokens, in {t.run_dir}")
    print(
        f"batch       {size} sequences of {config.model.seq_length:,} = {format_count(step_tokens)} tokens a step, "
        f"{t.global_batch_size // (t.micro_batch_size * layout.dp_size)} micro batches a rank"
    )
    if sessions.only is not None:
        print(f"session     {sessions.only.name} alone (train.session)")


def _print_sessions(config: Config, sessions: Sessions, segments: Iterable[SamplingPlan | None]) -> None:
    """Each session: its stretch, its learning rate, what its sources give, and the checkpoints that are kept."""
    saved = _saved_tokens(config, sessions)
    for session, segment in zip(sessions.every, segments, strict=False):
        if session.name:
            start = ", the optimizer anew" if session.fresh_optimizer else ""
            print(
                f"session     {session.name}: tokens {format_count(session.first_token)} to "
                f"{format_count(session.end_token)}, steps {session.first_step + 1:,} to {session.end_step:,}{start}"
            )
        s, length = session.schedule, session.end_token - session.first_token
        marks = ", ".join(
            f"{session.lr_at(session.first_token + round(length * part)):.3g} at "
            f"{format_count(session.first_token + round(length * part))}"
            for part in (0.0, 0.01, 0.25, 0.5, 0.75, 1.0)
        )
        print(f"lr          {s.style}, warm-up {format_count(s.warmup_tokens)} tokens: {marks}")
        table = ["not known without the data files"] if segment is None else mixture_table(segment).text.splitlines()
        for number, line in enumerate(table):
            print(f"{'data' if number == 0 else '':<12}{line}")
        kept = [mark for mark in saved if session.first_token < mark <= session.end_token]
        releases = [m for m in config.checkpoint.release_marks if session.first_token < m <= session.end_token]
        print(
            f"saved       {len(kept):,} checkpoints"
            + (f", releases at {', '.join(map(format_count, releases))}" if releases else "")
        )


def _saved_tokens(config: Config, sessions: Sessions) -> list[int]:
    """Consumed tokens at which a checkpoint is due: the interval's, the release marks, and every session's end."""
    end = sessions.every[-1].end_token
    due = {session.end_token for session in sessions.every} | {m for m in config.checkpoint.release_marks if m <= end}
    interval = config.checkpoint.interval
    if interval is not None:
        step = interval.every if interval.unit == "tokens" else interval.every * _step_tokens(config)
        due |= set(range(step, end + 1, step))
    return sorted(due)


def _step_tokens(config: Config) -> int:
    return config.train.global_batch_size * config.model.seq_length
