"""Texts continued token by token, several in a batch.

Each new token runs the whole sequences through the model again. Without a key/value cache that is quadratic, exact in
every batch, and the same for both kinds of checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_sky.inference.model import Model


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
        prompt: its token ids, at least one.
        limit: new tokens, at most.
        temperature: 0 takes the likeliest token.
        ended: whether the new tokens, handed over after each, are all that is wanted.
    """

    prompt: Sequence[int]
    limit: int
    temperature: float
    ended: Callable[[list[int]], bool]


def continue_texts(model: Model, requests: Sequence[Request], *, vocab_size: int, seed: int) -> list[list[int]]:
    """The new tokens of each request, of ids below `vocab_size`. What is sampled does not depend on other requests."""
    new: list[list[int]] = [[] for _ in requests]
    generators = [torch.Generator(device=model.device).manual_seed(seed) for _ in requests]
    going = [number for number, request in enumerate(requests) if request.limit > 0]
    with torch.inference_mode():
        while going:
            logits = _next_logits(model, [[*requests[number].prompt, *new[number]] for number in going])
            for number, scores in zip(going, logits, strict=True):
                new[number].append(_choose(scores[:vocab_size], requests[number].temperature, generators[number]))
            going = [
                number
                for number in going
                if len(new[number]) < requests[number].limit and not requests[number].ended(new[number])
            ]
    return new


def _next_logits(model: Model, rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    places = torch.tensor([number * longest + len(row) - 1 for number, row in enumerate(rows)])
    return model.next_logits(tokens.to(model.device), places.to(model.device))


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator))
