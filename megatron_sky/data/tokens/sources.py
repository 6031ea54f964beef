"""A token pair, opened and held against its meta file and the model: what training and validation read. No torch."""

from dataclasses import dataclass
from pathlib import Path

from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.meta import Meta, check_tokens


@dataclass(frozen=True)
class OpenSource:
    """The pair's tokens, and what its meta file says of them; None where it has none (made by another tool)."""

    tokens: IndexedTokens
    meta: Meta | None


def open_source(
    prefix: str | Path, *, vocab_size: int, tokenizer_sha256: str | None = None, eod_id: int | None = None
) -> OpenSource:
    """Opens the pair `prefix`, checked as `meta.check_tokens` does. Raises DataError."""
    tokens = IndexedTokens(prefix)
    try:
        meta = check_tokens(tokens, vocab_size=vocab_size, tokenizer_sha256=tokenizer_sha256, eod_id=eod_id)
    except BaseException:
        tokens.close()
        raise
    return OpenSource(tokens, meta)
