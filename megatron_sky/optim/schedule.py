"""The learning rate and the global batch size as pure functions of consumed tokens. No torch, no state.

Nothing about the schedule is saved in a checkpoint: a resumed run computes it anew from the recipe in hand, so an LR
that was given on resume is the LR that is used.
"""

import math

from megatron_sky.config.schema import BatchRampup, ScheduleConfig


def lr_at(schedule: ScheduleConfig, consumed_tokens: int, total_tokens: int) -> float:
    """The learning rate of the step that starts at `consumed_tokens`; `total_tokens` is train.tokens.

    warm-up: linear from warmup_start_lr to lr. Then, with u the fraction of the decay that is done:
    cosine  min + (lr - min) (1 + cos(pi u)) / 2
    linear  lr + (min - lr) u
    wsd     lr until wsd_decay_tokens before the end, then the shape of wsd_decay_style
    inverse_sqrt  lr sqrt(warmup_tokens / consumed_tokens), at least min_lr; after the decay's end min_lr
    """
    s = schedule
    if consumed_tokens < s.warmup_tokens:
        return s.warmup_start_lr + (s.lr - s.warmup_start_lr) * consumed_tokens / s.warmup_tokens
    if s.style == "constant":
        return s.lr
    end = s.decay_tokens if s.decay_tokens is not None else total_tokens
    if s.style == "inverse_sqrt":
        falling = s.lr * math.sqrt(s.warmup_tokens / consumed_tokens)
        return s.min_lr if consumed_tokens > end else max(s.min_lr, falling)
    start = end - s.wsd_decay_tokens if s.style == "wsd" else s.warmup_tokens
    done = _fraction(consumed_tokens - start, end - start)
    shape = s.wsd_decay_style if s.style == "wsd" else s.style
    return _decayed(shape, s.lr, s.min_lr, done)


def global_batch_size_at(full_size: int, rampup: BatchRampup | None, consumed_tokens: int) -> int:
    """Sequences in the step that starts at `consumed_tokens`.

    The ramp's stages, start_size, start_size + increment, ..., each last an equal share of rampup.tokens.
    """
    if rampup is None or consumed_tokens >= rampup.tokens:
        return full_size
    num_stages = (full_size - rampup.start_size) // rampup.increment
    if num_stages == 0:
        return full_size
    stage = consumed_tokens * num_stages // rampup.tokens
    return rampup.start_size + stage * rampup.increment


def run_length(
    total_tokens: int,
    *,
    seq_length: int,
    full_size: int,
    rampup: BatchRampup | None = None,
    consumed_samples: int = 0,
    max_steps: int | None = None,
) -> tuple[int, int]:
    """(steps still to do, samples at the run's end) from `consumed_samples` until `total_tokens` are consumed.

    The last step may go beyond the budget: a step is never cut. `max_steps`: no more than these.
    """
    steps, samples = 0, consumed_samples
    ramps = 0 if rampup is None else min(total_tokens, rampup.tokens)
    while samples * seq_length < ramps and steps != max_steps:
        samples += global_batch_size_at(full_size, rampup, samples * seq_length)
        steps += 1
    rest = max(0, -(-(total_tokens - samples * seq_length) // (full_size * seq_length)))
    if max_steps is not None:
        rest = min(rest, max_steps - steps)
    return steps + rest, samples + rest * full_size


def _fraction(done: int, whole: int) -> float:
    if whole <= 0:
        return 1.0 if done >= 0 else 0.0
    return min(max(done / whole, 0.0), 1.0)


def _decayed(shape: str, lr: float, min_lr: float, done: float) -> float:
    if shape == "cosine":
        return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
    if shape == "sqrt":
        return min_lr + (lr - min_lr) * (1.0 - math.sqrt(done))
    if shape == "exponential":
        return lr * (min_lr / lr) ** done
    if shape == "halving":
        return min_lr + (lr - min_lr) * (2.0 * 0.5**done - 1.0)
    return lr + (min_lr - lr) * done
