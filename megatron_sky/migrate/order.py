"""What makes the same numbers and not only the same shape: Megatron-LM's order of samples, its split, its last step."""

import re

from megatron_sky.migrate.arguments import Arguments, Untold
from megatron_sky.migrate.batch import RAMP, STEPS, Batch, budget, stages_of, tokens_of
from megatron_sky.migrate.translation import Translation, Writer

LEGACY_SPLIT = "969,30,1"
"""What `--data-path` without `--split` means."""
_MASKS = ("reset-position-ids", "reset-attention-mask", "eod-mask-loss")


def put_order(args: Arguments, writer: Writer, done: Translation, batch: Batch) -> None:
    """Writes `data.sampling: megatron` and all that decides its order, and the tokens of Megatron-LM's last step."""
    put = writer.put
    put("data.sampling", "megatron")
    _split(args, writer)
    put("data.megatron.num_samples", lambda: _num_samples(args, batch), "train-samples", "train-iters")
    if args.has("mid-level-dataset-surplus"):
        put("data.megatron.surplus", args.one("mid-level-dataset-surplus", float), "mid-level-dataset-surplus")
    if args.has("train-samples"):
        put("train.tokens", lambda: _whole_steps(args, batch), "train-samples")
        if not args.has("lr-decay-samples"):  # the rate falls until the last sample, one that is left out too
            put("schedule.decay_tokens", lambda: args.number("train-samples", int) * batch.seq_length, "train-samples")
    _without_weights(done)
    for key in ("document_mask", "mask_document_ends"):
        if done.recipe["data"].pop(key, None) is not None:
            flags = [f"--{name}" for name in _MASKS if args.has(name) and name.startswith(("eod", "reset"))]
            done.mapped = [line for line in done.mapped if f" -> data.{key}: " not in line]
            own = [flag for flag in flags if flag.startswith("--eod") == (key == "mask_document_ends")]
            done.no_counterpart.append(f"{', '.join(own)}: another training: not together with --same-order")


def _split(args: Arguments, writer: Writer) -> None:
    """Of files that are one for all splits; where each has its own, all documents count."""
    if args.has("train-data-path", "per-split-data-args-path"):
        return
    split = args.one("split", str, LEGACY_SPLIT)
    if isinstance(split, str) and "${" not in split:
        split = ",".join(re.findall(r"[.0-9]+", split))
        if not re.search("[1-9]", split.partition(",")[2]):
            return  # all of it is for training
    writer.put("data.megatron.split", split, "split")


def _without_weights(done: Translation) -> None:
    """Sources that have no weights weigh what they hold."""
    sources = done.recipe["data"]["train"]
    if all(isinstance(source, dict) and isinstance(source["weight"], list) for source in sources):
        done.recipe["data"]["megatron"]["weights"] = "sizes"
        for source in sources:
            source["weight"] = 1.0
        done.mapped.append("--data-path without weights -> data.megatron.weights: sizes")
        done.to_give = [line for line in done.to_give if not line.startswith("data.train: weights")]


def _num_samples(args: Arguments, batch: Batch) -> int:
    """Samples for which Megatron-LM builds its order, whatever of them the run reads."""
    if args.has("train-samples"):
        return args.number("train-samples", int)
    if args.has("train-iters"):
        return args.number("train-iters", int) * batch.size
    raise Untold("neither --train-iters nor --train-samples is given")


def _whole_steps(args: Arguments, batch: Batch) -> int:
    """Tokens of the steps that Megatron-LM makes of --train-samples: a last batch that isn't full is left out, unless
    the batch grows by --step-batch-size-schedule."""
    samples = args.number("train-samples", int)
    if args.has(STEPS):
        return budget(args, batch)
    if not args.has(RAMP):
        return samples // batch.size * batch.size * batch.seq_length
    ramp_end = args.several(RAMP, int)[2]
    stages, consumed, steps = stages_of(args, batch), 0, 0
    while consumed <= min(ramp_end, samples):
        steps += 1
        consumed = tokens_of(steps, stages, batch) // batch.seq_length
    return (consumed + max(samples - consumed, 0) // batch.size * batch.size) * batch.seq_length
