"""`megatron-sky tokenizer ...`: build, extend, chat, check. Each verb imports its package when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_sky.cli._common import INPUTS_HELP, verb_group

app = verb_group("Tokenizers: build, extend, give chat tokens, check.")

Inputs = Annotated[list[str], typer.Argument(help=INPUTS_HELP)]
Out = Annotated[Path, typer.Option(help="The .model file to write.")]
Size = Annotated[int, typer.Option(help="Exact number of tokens.")]
Key = Annotated[str, typer.Option(help="Name of the text in an object or table.")]
MaxBytes = Annotated[int, typer.Option(help="Learn from about this many bytes of text, spread over the input.")]
Overwrite = Annotated[bool, typer.Option(help="Replace a file that is there.")]
Reserved = Annotated[int, typer.Option(help="Reserved symbols: [USER], [BOT], [SEP], [RESERVED_0] ...")]


@app.command()
def build(
    inputs: Inputs,
    out: Out,
    vocab_size: Size,
    key: Key = "text",
    max_bytes: MaxBytes = 200_000_000,
    reserved: Reserved = 0,
    overwrite: Overwrite = False,
) -> None:
    """Learn a SentencePiece BPE vocabulary with byte fallback and single digits."""
    from megatron_sky.data.ingest.texts import sample_texts
    from megatron_sky.tokenizer.extend import reserved_symbols
    from megatron_sky.tokenizer.train import train_tokenizer

    _check_free(out, overwrite)
    texts = sample_texts(inputs, key=key, max_bytes=max_bytes)
    built = train_tokenizer(texts, out, vocab_size, reserved=reserved_symbols(reserved))
    print(f"{out}: {built.vocab_size:,} tokens, sha256 {built.sha256[:12]}")


@app.command()
def extend(
    inputs: Inputs,
    base: Annotated[Path, typer.Option(help="SentencePiece .model to begin with; its ids are kept.")],
    out: Out,
    vocab_size: Size = 65_536,
    characters: Annotated[int, typer.Option(help="Single Chinese characters to add, at most.")] = 8000,
    reserved: Reserved = 17,
    key: Key = "text",
    max_bytes: MaxBytes = 200_000_000,
    overwrite: Overwrite = False,
) -> None:
    """Add Chinese characters, Chinese words and reserved symbols to a vocabulary, up to an exact size."""
    from megatron_sky.data.ingest.texts import sample_texts
    from megatron_sky.tokenizer.extend import extend_tokenizer, reserved_symbols
    from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, load_tokenizer

    _check_free(out, overwrite)
    loaded = load_tokenizer(base)
    if not isinstance(loaded, SentencePieceTokenizer):
        raise typer.BadParameter(f"--base {base}: only a SentencePiece .model can be extended")
    extended = extend_tokenizer(
        loaded,
        sample_texts(inputs, key=key, max_bytes=max_bytes),
        out,
        vocab_size=vocab_size,
        num_characters=characters,
        reserved=reserved_symbols(reserved),
    )
    print(f"{out}: {extended.vocab_size:,} tokens, {extended.vocab_size - loaded.vocab_size:,} of them new")


@app.command()
def chat(
    base: Annotated[Path, typer.Argument(help="SentencePiece .model or tokenizer.json; ids that are there are kept.")],
    out: Out,
    template: Annotated[str, typer.Option(help="The built-in template whose tokens it gets.")] = "skywork",
    overwrite: Overwrite = False,
) -> None:
    """Put a chat template's tokens into the reserved ones of a tokenizer; behind the last where there are none.

    The template itself goes beside it (chat_template.jinja), from where training takes it into checkpoints.
    """
    from megatron_sky.files import write_text
    from megatron_sky.tokenizer.chat_template import BUILT_IN, FILE, SYMBOLS
    from megatron_sky.tokenizer.chat_tokens import write_with_chat_tokens
    from megatron_sky.tokenizer.kinds import load_tokenizer

    _check_free(out, overwrite)
    if template not in SYMBOLS:
        raise typer.BadParameter(f"--template {template}: must be one of {', '.join(SYMBOLS)}")
    beside = out.with_name(FILE)
    if not (beside.is_file() and beside.read_text(encoding="utf-8") == BUILT_IN[template]):
        _check_free(beside, overwrite)
    loaded = load_tokenizer(base)
    ids = write_with_chat_tokens(loaded, SYMBOLS[template], out)
    write_text(beside, BUILT_IN[template])
    size = load_tokenizer(out).vocab_size
    told = ", ".join(f"{symbol} {token_id}" for symbol, token_id in ids.items())
    print(f"{out}: {size:,} tokens, {size - loaded.vocab_size} behind the last; {told}")


def _check_free(out: Path, overwrite: bool) -> None:
    from megatron_sky.errors import DataError

    if out.exists() and not overwrite:
        raise DataError(
            f"{out} exists already, and data may have been made with it\n"
            "  fix: choose another name, or allow replacing with --overwrite"
        )


@app.command()
def check(
    tokenizer: Annotated[Path, typer.Argument(help="SentencePiece .model, tokenizer.json or .tiktoken file.")],
    text: Annotated[list[str] | None, typer.Option(help="Files whose texts are tried too.")] = None,
    key: Key = "text",
    max_bytes: MaxBytes = 2_000_000,
) -> None:
    """Prove a tokenizer: round trip, sizes, digits, special symbols, compression, equal ids from every library."""
    from megatron_sky.data.ingest.texts import sample_texts
    from megatron_sky.tokenizer.check import check_tokenizer
    from megatron_sky.tokenizer.kinds import load_tokenizer

    texts = list(sample_texts(text, key=key, max_bytes=max_bytes)) if text else []
    checks = check_tokenizer(load_tokenizer(tokenizer), texts)
    for result in checks:
        print(f"{'ok  ' if result.holds else 'FAIL'} {result.rule}: {result.seen}")
    if not all(result.holds for result in checks):
        raise typer.Exit(3)
