"""How many tokens a held-out set has for another model's tokenizer: the measure by which losses can be compared.

Two models with different tokenizers predict different numbers of tokens for one text, so their losses per token say
little. The report (4.3) sets them on one scale: normalised loss = loss x own tokens / the reference model's tokens.
"""

from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.tokenizer.kinds import Tokenizer


def token_ratio(file: IndexedTokens, own: Tokenizer, reference: Tokenizer, *, num_tokens: int) -> float:
    """Own tokens / the reference tokenizer's tokens of the documents in the file's first `num_tokens` tokens.

    A document that goes beyond them counts with its part. Ends of documents count one token for both.
    """
    ours = theirs = 0
    number = 0
    while ours < num_tokens and number < file.num_documents:
        ids = file.document(number)[: num_tokens - ours]
        text_ids = [token_id for token_id in ids.tolist() if token_id != own.eod_id]
        ours += len(ids)
        theirs += len(reference.encode(own.decode(text_ids))) + len(ids) - len(text_ids)
        number += 1
    return ours / theirs if theirs else 1.0
