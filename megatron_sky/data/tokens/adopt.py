"""A meta file for a pair that another tool made, once it was verified with the tokenizer it was made with."""

from dataclasses import replace

from megatron_sky.data.tokens.meta import DocumentCounts, Meta
from megatron_sky.data.tokens.scan import describe
from megatron_sky.data.tokens.verify import Verified
from megatron_sky.tokenizer.kinds import Tokenizer


def write_meta_of(verified: Verified, tokenizer: Tokenizer) -> Meta:
    """Write and return the meta file; what went into the pair is not known, so its documents are taken as written."""
    written = verified.num_documents - verified.num_empty
    meta = describe(
        verified.prefix,
        tokenizer,
        append_eod=verified.num_unended == 0,
        documents=DocumentCounts(read=verified.num_documents, written=written, empty=verified.num_empty),
    )
    meta = replace(meta, notes={"made_by_another_tool": 1})
    meta.write(verified.prefix)
    return meta
