"""What evaluation asks of a model, whichever library runs it. No torch."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, device


class Model(Protocol):
    """A model with its weights. `share`, `shares`: which part of the batches this rank computes, of how many."""

    device: "device"
    share: int
    shares: int
    answers: bool
    """Whether this rank is the one of its model that holds the answers."""

    def losses(self, tokens: "Tensor", places: "Tensor", targets: "Tensor") -> "tuple[Tensor, Tensor] | None":
        """For `tokens` `[b, s]` and n flat positions `places`: (losses `[n]` in nats, whether likeliest `[n]`).

        None on a rank that holds only an earlier pipeline stage.
        """
        ...
