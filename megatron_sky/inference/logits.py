"""Losses of logits, in pieces of bounded memory."""

import torch.nn.functional as F
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 20  # elements; few enough to stay in a processor's cache
_LEAST_ROWS = 256  # at once: a product of fewer rows is slow


def row_chunks(num_rows: int, width: int) -> list[slice]:
    """Slices of rows of `width` columns, for the output layer and what follows it."""
    step = max(_LEAST_ROWS, _LOGITS_AT_ONCE // width)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def losses_of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(losses `[n]`, likeliest `[n]`) of logits `[n, V]`, in float32."""
    log_probabilities = F.log_softmax(logits.float(), -1)
    own = log_probabilities.gather(1, targets[:, None])[:, 0]
    return -own, own >= log_probabilities.amax(-1)
