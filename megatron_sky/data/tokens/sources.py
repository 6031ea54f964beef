"""A token pair, opened and held against its meta file and the model: what training and validation read. No torch."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.tokens.mask import TokenMask, mask_path, open_mask
from megatron_sky.data.tokens.meta import Meta, check_tokens
from megatron_sky.files import open_handle

_PLACE = 4096  # bytes
_AT_ONCE = 16  # pairs
_PLACES = 512  # of a file, evenly spread; a smaller file is read through


@dataclass(frozen=True)
class OpenSource:
    """The pair's tokens, and what its meta file says of them; None where it has none (made by another tool).

    `mask`: of packed samples, of which only the answers' tokens count; None where all do.
    """

    tokens: IndexedTokens
    meta: Meta | None
    mask: TokenMask | None = None


def open_source(
    prefix: str | Path, *, vocab_size: int, tokenizer_sha256: str | None = None, eod_id: int | None = None
) -> OpenSource:
    """Opens the pair `prefix`, checked as `meta.check_tokens` does. Raises DataError."""
    tokens = IndexedTokens(prefix)
    try:
        meta = check_tokens(tokens, vocab_size=vocab_size, tokenizer_sha256=tokenizer_sha256, eod_id=eod_id)
        mask = open_mask(prefix, tokens.num_tokens, is_known=meta is not None and meta.mask is not None)
    except BaseException:
        tokens.close()
        raise
    return OpenSource(tokens, meta, mask)


def fingerprints(prefixes: Mapping[str, str | Path]) -> dict[str, str]:
    """The `fingerprint` of each pair, many at once: a disk far away answers each question late. Raises OSError."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(prefixes, pool.map(fingerprint, prefixes.values()), strict=True))


def fingerprint(prefix: str | Path) -> str:
    """By which a pair is known again in a second, whatever its size: a hash of its files' sizes and many places.

    Another text, or the same documents in another order, has another one. A few bytes changed in a large file may
    have not: `data verify` reads all of it. Raises OSError.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    paths = [bin_path(prefix), idx_path(prefix)]
    if mask_path(prefix).exists():
        paths.append(mask_path(prefix))
    for path in paths:
        handle = open_handle(path)
        try:
            size = os.fstat(handle).st_size
            digest.update(size.to_bytes(8, "little"))
            last = max(0, size - _PLACE)
            for place in range(_PLACES):
                digest.update(os.pread(handle, _PLACE, last * place // (_PLACES - 1)))
        finally:
            os.close(handle)
    return digest.hexdigest()
