"""`megatron-sky generate`: text from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_sky.cli._common import log_to_screen


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, run folder (its latest), or Hugging Face folder.")],
    prompt: Annotated[
        list[str], typer.Argument(help="Texts to continue, each shorter than the model's context length.")
    ],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 takes the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 1234,
) -> None:
    """Continue prompts with a checkpoint of any layout, in this one process."""
    from megatron_sky.inference.generate import Sampling, generate_texts

    log_to_screen()
    for text in generate_texts(checkpoint, prompt, Sampling(max_tokens, temperature, seed)):
        print(text)
