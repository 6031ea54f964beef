"""`megatron-sky generate`, `chat` and `serve`: text from a checkpoint."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_sky.cli._common import log_to_screen, with_options

if TYPE_CHECKING:
    from megatron_sky.generation.sampling import Sampling

Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint, run folder (its latest), or Hugging Face folder.")]
Template = Annotated[
    str | None,
    typer.Option(help="Chat template: skywork, chatml, llama2 or a Jinja file. Default: the tokenizer's own."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. Default: float32 on a CPU, the weights' own on a GPU."),
]
Base = Annotated[Path | None, typer.Option(help="The model beneath a checkpoint of adapters, where it was moved.")]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "--max-tokens", min=1, help="Tokens to generate, at most.")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 takes the likeliest.")]


def sampling_options(
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from so many likeliest tokens; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest of this summed probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Leave out what has less than this share of the best's.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was there already loses.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(min=0, help="No run of so many tokens comes twice.")] = 0,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of a beam search; 1: none.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of a beam search: above 0 prefers long texts.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a continuation and is no part of it; more than once.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 1234,
) -> Callable[[int, float], "Sampling"]:
    """How tokens are chosen, from the options that the verbs share, but for those whose defaults differ."""

    def build(max_new_tokens: int, temperature: float) -> "Sampling":
        from megatron_sky.generation.sampling import Sampling

        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            num_beams=num_beams,
            length_penalty=length_penalty,
            stop=tuple(stop or ()),
            seed=seed,
        )

    return build


@with_options(sampling_options)
def generate(
    checkpoint: Checkpoint,
    options: Callable[[], Callable[[int, float], "Sampling"]],
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Texts to continue, each shorter than the model's context length.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts: one a line, or JSONL with `prompt` or `messages`. Needs --out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file to write, a line for each prompt of --prompts.")] = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts continued side by side, at most.")] = 8,
    chat_template: Template = None,
    dtype: Dtype = None,
    base: Base = None,
) -> None:
    """Continue prompts with a checkpoint of any layout, in this one process, by transformers."""
    from megatron_sky.generation.prompts import answer_file, read_prompts
    from megatron_sky.generation.run import generate_texts, open_engine

    _check_prompts(prompt, prompts, out)
    sampling = options()(max_new_tokens, temperature)
    log_to_screen()
    if prompts is not None:
        assert out is not None
        read = read_prompts(prompts)
        opened = open_engine(checkpoint, dtype=dtype, chat_template=chat_template, base=base)
        answer_file(opened, read, sampling, out, batch_size=batch_size)
        print(f"{out}: {len(read)} prompts answered")
    elif sys.stdout.isatty() and sampling.num_beams == 1:
        generate_texts(checkpoint, prompt or [], sampling, dtype=dtype, base=base, show=_write)
    else:
        for text in generate_texts(checkpoint, prompt or [], sampling, batch_size=batch_size, dtype=dtype, base=base):
            print(text)


@with_options(sampling_options)
def chat(
    checkpoint: Checkpoint,
    options: Callable[[], Callable[[int, float], "Sampling"]],
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    chat_template: Template = None,
    dtype: Dtype = None,
    base: Base = None,
) -> None:
    """Talk to a model in the terminal; /help lists the commands."""
    import contextlib

    from megatron_sky.generation.chat import Chat, converse
    from megatron_sky.generation.run import open_engine

    with contextlib.suppress(ImportError):  # a Python without it reads lines all the same
        import readline  # noqa: F401 (arrow keys and history for input())
    sampling = options()(max_new_tokens, temperature)
    log_to_screen()
    opened = open_engine(checkpoint, dtype=dtype, chat_template=chat_template, base=base)
    _write(f"{opened.checkpoint.name}, chat template {opened.needed_template().name}; /help lists the commands\n")
    converse(Chat(opened, sampling, _write, system=system), _read_line)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _read_line(prompt: str) -> str:
    if not sys.stdin.isatty():
        prompt = ""
    return input(prompt)


def _check_prompts(prompt: list[str] | None, prompts: Path | None, out: Path | None) -> None:
    """Raises ConfigError where there is none to continue, or two kinds of them."""
    from megatron_sky.errors import ConfigError, Problem

    problems = []
    if not prompt and prompts is None:
        problems.append(Problem("--prompts", "there is no prompt", "give texts to continue, or a file of them"))
    if prompt and prompts is not None:
        problems.append(Problem("--prompts", "there are prompts on the command line too", "give one of them", prompts))
    if (prompts is None) != (out is None):
        problems.append(Problem("--out", "goes with --prompts", "give both or neither"))
    if problems:
        raise ConfigError(problems)


def serve(
    checkpoint: Checkpoint,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's own needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    engine: Annotated[str, typer.Option(help="auto, vllm (with a GPU) or transformers.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Requests answered side by side, at most.")] = 16,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests answered and waiting at once; then 429.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 4096,
    max_body: Annotated[str, typer.Option(help="Largest request in bytes, as 4M.")] = "4M",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until an answer must be whole.")] = 600.0,
    chat_template: Template = None,
    dtype: Dtype = None,
    base: Base = None,
) -> None:
    """Serve a model over the OpenAI API, with a page to try it at /. MEGATRON_SKY_API_KEY sets a key."""
    from megatron_sky.cli._common import parse_size
    from megatron_sky.serve.limits import Limits
    from megatron_sky.serve.run import serve as run

    log_to_screen()
    limits = Limits(
        max_new_tokens=max_new_tokens,
        max_body=parse_size(max_body, "--max-body", "give it as 4M"),
        max_requests=max_requests,
        batch_size=batch_size,
        timeout=timeout,
    )
    run(
        checkpoint,
        host=host,
        port=port,
        limits=limits,
        engine=engine,
        chat_template=chat_template,
        dtype=dtype,
        base=base,
    )
