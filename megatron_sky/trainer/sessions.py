"""The sessions of a run on its one axis of consumed tokens: where each begins and ends, and its learning rate.

A recipe without `sessions:` is a run of one nameless session. Pure arithmetic: no torch.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from megatron_sky.config import Config
from megatron_sky.config.schema import ScheduleConfig
from megatron_sky.config.units import format_count
from megatron_sky.data.sampling.mixture import SessionMixture
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.optim.schedule import lr_at, run_length

LR_JUMP = 0.01  # of the rate: a larger step at a hand-over is told


@dataclass(frozen=True)
class Session:
    """A stretch of the run: samples `first_sample` to `end_sample`, which are steps `first_step` to `end_step`.

    `tokens` is the budget as the recipe gives it, over which schedule and budget are reckoned; the session's last step
    may go beyond it, and the next one begins there.
    """

    name: str
    tokens: int
    schedule: ScheduleConfig
    mixture: SessionMixture
    first_token: int
    end_token: int
    first_step: int
    end_step: int
    fresh_optimizer: bool

    @property
    def first_sample(self) -> int:
        return self.mixture.first_sample

    @property
    def end_sample(self) -> int:
        return self.mixture.end_sample

    def lr_at(self, consumed_tokens: int) -> float:
        """The learning rate of the step that starts at `consumed_tokens` of the run."""
        return lr_at(self.schedule, consumed_tokens - self.first_token, self.tokens)


class Sessions:
    """A run's sessions in order. Those after `train.session` are not trained by this job."""

    def __init__(self, every: tuple[Session, ...], only: str | None = None):
        self.every = every
        self.only = next((session for session in every if session.name == only), None) if only is not None else None

    @property
    def first(self) -> Session:
        """The session this job begins with, if its run is new."""
        return self.only or self.every[0]

    @property
    def last(self) -> Session:
        """The session this job ends with."""
        return self.only or self.every[-1]

    def at(self, consumed_samples: int) -> Session:
        """The session that the step after `consumed_samples` belongs to."""
        index = bisect_right(self.every, consumed_samples, key=lambda session: session.first_sample) - 1
        return self.every[max(index, 0)]

    def ended(self, before: int, after: int) -> bool:
        """Whether the step from `before` to `after` consumed samples was a session's last."""
        return self.at(before) is not self.at(after) or before < self.every[-1].end_sample <= after

    def check_begin(self, consumed_samples: int) -> None:
        """Raises ConfigError where this job's session can't begin, or go on, at `consumed_samples` of the run."""
        if self.only is None or self.only.first_sample <= consumed_samples:
            return
        here = self.at(consumed_samples)
        raise ConfigError(
            Problem(
                "train.session",
                f"begins at sample {self.only.first_sample:,}, and the run has come to {consumed_samples:,}",
                f"train {here.name} first, or start a new run folder from weights with checkpoint.init_from",
                self.only.name,
            )
        )


def sessions_of(config: Config) -> Sessions:
    """The recipe's sessions, each from the sample at which the one before it ends."""
    parts = [
        (session.name, session.tokens, session.weights, session.schedule or config.schedule, session.start == "weights")
        for session in config.sessions
    ] or [("", config.train.tokens, None, config.schedule, False)]
    sessions: list[Session] = []
    sample = step = budget = 0
    for name, tokens, weights, schedule, fresh in parts:
        budget += tokens
        steps, end = run_length(
            budget,
            seq_length=config.model.seq_length,
            full_size=config.train.global_batch_size,
            rampup=config.train.batch_rampup,
            consumed_samples=sample,
        )
        if end == sample:
            where = f"sessions.{name}.tokens"
            raise ConfigError(
                Problem(where, "is less than one step, which the session before has taken", "raise it", tokens)
            )
        sessions.append(
            Session(
                name=name,
                tokens=tokens,
                schedule=schedule,
                mixture=SessionMixture(sample, end, weights),
                first_token=sample * config.model.seq_length,
                end_token=end * config.model.seq_length,
                first_step=step,
                end_step=step + steps,
                fresh_optimizer=fresh and sample > 0,
            )
        )
        sample, step = end, step + steps
    return Sessions(tuple(sessions), config.train.session)


def kept_marks(config: Config) -> list[int]:
    """Consumed tokens after each of which retention keeps a checkpoint for ever: release marks and sessions' ends."""
    return sorted([*config.checkpoint.release_marks, *(session.end_token for session in sessions_of(config).every)])


def find_notes(sessions: Sessions, config: Config) -> list[str]:
    """What a recipe's author may not have meant: rates that jump, budgets no step ends at."""
    notes = []
    for before, after in pairwise(sessions.every):
        old, new = before.lr_at(before.end_token), after.lr_at(after.first_token)
        if abs(new - old) > LR_JUMP * max(old, new):
            notes.append(
                f"the learning rate jumps from {old:.4g} to {new:.4g} at the hand-over from {before.name} to "
                f"{after.name} ({format_count(after.first_token)} tokens); sessions.{after.name}.schedule.lr = "
                f"{old:.4g} would not, and warmup_tokens would soften it"
            )
    if len(sessions.every) > 1:
        budget = 0
        for session in sessions.every:
            budget += session.tokens
            if session.end_token != budget:
                notes.append(
                    f"sessions.{session.name}: {budget:,} tokens is no whole number of steps; it ends at "
                    f"{session.end_token:,} (step {session.end_step:,})"
                )
    marks = [mark for mark in config.checkpoint.release_marks if mark > sessions.every[-1].end_token]
    if marks:
        end = format_count(sessions.every[-1].end_token)
        notes.append(
            f"checkpoint.release_marks: {', '.join(map(format_count, marks))} lies beyond the run's end, {end} tokens"
        )
    return notes
