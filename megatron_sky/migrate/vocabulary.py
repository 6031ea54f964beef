"""The number of tokens by Megatron-LM's arguments."""

from megatron_sky.migrate.arguments import Arguments, Untold
from megatron_sky.migrate.translation import Writer

_TAKES_ONE = (0, 18)
"""The first version whose NullTokenizer takes the last token for the end of a document; older ones add one."""


def put_size(args: Arguments, writer: Writer, megatron: str | None) -> None:
    """Writes `model.vocab_size`, of the version `megatron` of megatron-core where it is known."""
    size = args.one("vocab-size", int, Untold("the tokenizer's number of tokens, without padding"))
    null = args.given.get("tokenizer-type") == ["NullTokenizer"] and not isinstance(size, Untold)
    adds_one = megatron is not None and version_of(megatron) < _TAKES_ONE
    if null and adds_one:
        size = size + 1 if isinstance(size, int) else Untold(f"one more than --vocab-size {size}, for NullTokenizer")
    writer.put("model.vocab_size", size, "vocab-size")
    if null and megatron is None:
        writer.done.to_give.append(
            f"model.vocab_size: is written as {size}, the tokens of a run with megatron-core 0.18 and newer, whose "
            "NullTokenizer takes the last of them for the end of a document; up to 0.17 it adds one token for that, "
            "so that such a run has one more: give --megatron VERSION, or add 1 to go on with its checkpoints"
        )


def version_of(text: str) -> tuple[int, int]:
    """(0, 16) of 0.16.1 or core_v0.16.1. Raises ValueError."""
    major, minor, *_ = text.lower().removeprefix("core_").removeprefix("v").split(".")
    return int(major), int(minor)
