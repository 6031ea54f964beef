"""Tokens by Megatron-LM's counts: iterations, samples, a batch that grows, a schedule's spans.

Each function raises Untold where the arguments do not tell what it reckons with.
"""

from itertools import pairwise

from megatron_sky.config.units import SCALES
from megatron_sky.migrate.arguments import Arguments, Untold, known

Stage = tuple[int, int]  # (consumed tokens from which it holds, global batch size)
RAMP, STEPS = "rampup-batch-size", "step-batch-size-schedule"
RAMPS_NO_MORE = (0, 18)
"""The first version of megatron-core that passes over --rampup-batch-size, with a warning."""
NOT_THREE = Untold(f"--{RAMP} wants three values: START INCREMENT SAMPLES")


class Batch:
    """The batch as Megatron-LM counts by it; raises Untold where the arguments don't tell it."""

    def __init__(self, args: Arguments):
        self.args = args

    @property
    def size(self) -> int:
        if not self.args.has("global-batch-size") and self.args.has(STEPS):
            return last_size(self.args)
        return self.args.number("global-batch-size", int)

    @property
    def seq_length(self) -> int:
        return self.args.number("seq-length", int)

    def tokens(self, iterations: int) -> int:
        return iterations * self.size * self.seq_length


def budget(args: Arguments, batch: Batch) -> int:
    """Tokens of the whole run."""
    if args.has("train-samples"):
        return args.number("train-samples", int) * batch.seq_length
    if args.has("train-iters"):
        return tokens_of(args.number("train-iters", int), stages_of(args, batch), batch)
    raise Untold("neither --train-iters nor --train-samples is given")


def stages_of(args: Arguments, batch: Batch) -> list[Stage]:
    """The batch's growth as the recipe has it."""
    whole = [(0, batch.size)]
    if args.has(RAMP):
        values = [known(RAMP, value) for value in args.several(RAMP, int)]
        if len(values) != 3:
            raise NOT_THREE
        start, increment, samples = values
        tokens = samples * batch.seq_length
        number = max((batch.size - start) // max(increment, 1), 1)
        return [*((tokens * i // number, start + increment * i) for i in range(number)), (tokens, batch.size)]
    return (args.has(STEPS) and even_steps(args, batch)) or whole


def last_size(args: Arguments) -> int:
    """The batch that --step-batch-size-schedule ends with; newer versions take no --global-batch-size beside it."""
    return _entries(args)[-1][1]


def even_steps(args: Arguments, batch: Batch) -> list[Stage] | None:
    """The stages of --step-batch-size-schedule where they are even ones; None where they are not."""
    stages = _entries(args)
    growths = {(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(stages)}
    return stages if len(growths) == 1 and stages[-1][1] == batch.size else None


def _entries(args: Arguments) -> list[Stage]:
    parts = [known(STEPS, part) for part in args.several(STEPS, lambda text: text.replace(",", " ").split())]
    entries = [entry for part in parts for entry in part]
    try:
        stages = sorted((_count(tokens), _count(size)) for tokens, _, size in (text.partition(":") for text in entries))
    except ValueError:
        raise Untold(f"--{STEPS} {' '.join(entries)} is no list of TOKENS:SIZE") from None
    if not stages:
        raise Untold(f"--{STEPS} has no value")
    return stages


def tokens_of(iterations: int, stages: list[Stage], batch: Batch) -> int:
    """Tokens that `iterations` steps consume while the batch grows through `stages`."""
    tokens = 0
    for (_, size), (end, _) in pairwise(stages):
        steps = min(max(-(-(end - tokens) // (size * batch.seq_length)), 0), iterations)
        tokens, iterations = tokens + steps * size * batch.seq_length, iterations - steps
    return tokens + batch.tokens(iterations)


def _count(text: str) -> int:
    suffixes = {suffix.upper(): scale for suffix, scale in SCALES}
    scale = suffixes.get(text[-1:].upper(), 1)
    return round(float(text[:-1] if scale > 1 else text) * scale)


def decay_tokens(args: Arguments, batch: Batch) -> int:
    """Tokens after which Megatron-LM's rate is the least."""
    if args.has("lr-decay-iters", "lr-decay-samples"):
        return span(args, batch, "lr-decay-iters", "lr-decay-samples")
    if args.has("train-iters"):
        return span(args, batch, "train-iters", "train-samples")
    return budget(args, batch)


def span(args: Arguments, batch: Batch, iterations: str, samples: str) -> int:
    """Tokens of a number of iterations, or of samples."""
    if args.has(samples):
        return args.number(samples, int) * batch.seq_length
    return batch.tokens(args.number(iterations, int))
