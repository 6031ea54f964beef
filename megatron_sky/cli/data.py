"""`megatron-sky data ...`: tokenize, chat, verify, merge, inspect, mix. A verb imports its package when called."""

import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_sky.cli._common import INPUTS_HELP, ProgressBar, Recipe, verb_group
from megatron_sky.control import visible

app = verb_group("Token files: tokenize texts and conversations, verify, merge, inspect, and plan the mixture.")

Prefixes = Annotated[list[str], typer.Argument(help="Path prefixes of .bin/.idx pairs, without the ending.")]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="SentencePiece .model, tokenizer.json or .tiktoken file.")
]


@app.command()
def tokenize(
    inputs: Annotated[list[str], typer.Argument(help=INPUTS_HELP)],
    out: Annotated[Path, typer.Option(help="Path prefix of the pair to write.")],
    tokenizer: Annotated[Path, typer.Option(help="SentencePiece .model, tokenizer.json or .tiktoken file.")],
    key: Annotated[list[str] | None, typer.Option(help="Name of the text; several give a pair each.")] = None,
    append_eod: Annotated[bool, typer.Option(help="End each document with the end-of-document token.")] = True,
    split_sentences: Annotated[bool, typer.Option(help="A document's sequences are its sentences.")] = False,
    keep_newlines: Annotated[bool, typer.Option(help="Keep the white space between sentences.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: all cores.")] = 0,
    shard: Annotated[
        str | None, typer.Option(help="i/n: part i (from 0) of n, for a job array; merge them after.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first document that is rejected.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    parse_special: Annotated[
        bool, typer.Option(help="Control tokens spelt in a text become those tokens, not characters.")
    ] = False,
    encoder: Annotated[str, typer.Option(help="auto, fast (gigatoken) or library (the tokenizer's own).")] = "auto",
    max_document_bytes: Annotated[int, typer.Option(help="Longer documents are rejected.")] = 64 << 20,
) -> None:
    """Turn texts into a .bin/.idx pair. Given again after an interruption, it goes on where it stopped."""
    from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files

    part = _parse_shard(shard)
    prefix = str(out) if part is None else f"{out}_shard_{part[0]:05d}_of_{part[1]:05d}"
    options = TokenizeOptions(
        keys=tuple(key or ["text"]),
        append_eod=append_eod,
        split_sentences=split_sentences,
        keep_newlines=keep_newlines,
        workers=workers or os.cpu_count() or 1,
        shard=part,
        strict=strict,
        overwrite=overwrite,
        parse_special=parse_special,
        fast=_parse_choice(encoder, {"auto": None, "fast": True, "library": False}),
        max_document_bytes=max_document_bytes,
    )
    with ProgressBar("tokenizing") as bar:
        metas = tokenize_files(inputs, prefix, tokenizer, options, report=bar)
    for meta in metas:
        _print_counts(meta)


@app.command()
def chat(
    inputs: Annotated[list[str], typer.Argument(help="Conversations: JSONL (also compressed), JSON, Parquet files.")],
    out: Annotated[Path, typer.Option(help="Path prefix of the pair to write.")],
    tokenizer: Annotated[Path, typer.Option(help="SentencePiece .model, tokenizer.json or .tiktoken file.")],
    seq_length: Annotated[int, typer.Option(min=2, help="Tokens in a row: the model.seq_length of the run.")],
    template: Annotated[
        str | None, typer.Option(help="skywork, chatml, llama2, or a Jinja file; left out: the tokenizer's own.")
    ] = None,
    too_long: Annotated[str, typer.Option(help="Of what is longer than a row: drop it, or cut its end.")] = "drop",
    strict: Annotated[bool, typer.Option(help="Stop at the first conversation that can't be used.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    pairs: Annotated[
        bool, typer.Option(help="Preference data: a chosen and a rejected answer each, for finetune.dpo.")
    ] = False,
) -> None:
    """Turn conversations into packed samples with a loss mask: a .bin/.idx pair and a .mask file."""
    from megatron_sky.data.chat.build import ChatOptions, write_chat
    from megatron_sky.data.chat.samples import choose_template
    from megatron_sky.tokenizer.kinds import load_tokenizer

    loaded, chosen = load_tokenizer(tokenizer), choose_template(template, tokenizer)
    cuts = _parse_choice(too_long, {"drop": False, "cut": True})
    options = ChatOptions(row_length=seq_length, cuts_long=cuts, strict=strict, overwrite=overwrite, pairs=pairs)
    with ProgressBar("reading conversations") as bar:
        meta = write_chat(inputs, out, loaded, chosen, options, report=bar)
    _print_counts(meta)


@app.command()
def verify(
    prefixes: Prefixes,
    tokenizer: TokenizerPath = None,
    write_meta: Annotated[
        bool, typer.Option(help="Write the meta file of a pair that has none or a broken one; needs --tokenizer.")
    ] = False,
) -> None:
    """Prove pairs: header, index, sizes, ids, document ends, hashes. The first fault is told with its byte offset."""
    from megatron_sky.data.tokens.adopt import write_meta_of
    from megatron_sky.data.tokens.verify import verify as verify_pair
    from megatron_sky.tokenizer.kinds import load_tokenizer

    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    if write_meta and loaded is None:
        raise typer.BadParameter("--write-meta needs --tokenizer")
    for prefix in map(_without_ending, prefixes):
        with ProgressBar(f"verifying {prefix}") as bar:
            pair = verify_pair(prefix, tokenizer=loaded, without_broken_meta=write_meta, report=bar)
        known = "agrees with its meta file" if pair.meta else "has no meta file to agree with: structure and ids only"
        ends = "" if pair.num_unended is None else f", {pair.num_unended:,} not ended by the end-of-document id"
        print(f"{prefix}: whole; {pair.num_documents:,} documents{ends}, {pair.num_tokens:,} tokens; {known}")
        if (mask := pair.mask) is not None:
            print(
                f"  mask: {mask.rows:,} rows of {mask.row_length:,}; {mask.answer_tokens:,} tokens of answers, "
                f"{mask.context_tokens:,} of context, {mask.padding_tokens:,} of padding"
            )
        if write_meta and pair.meta is None and loaded is not None:
            write_meta_of(pair, loaded)
            print(f"{prefix}.meta.json written")


@app.command()
def merge(
    prefixes: Prefixes,
    out: Annotated[Path, typer.Option(help="Path prefix of the pair to write.")],
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
) -> None:
    """Join pairs, in the order given, into one. A folder stands for all pairs in it, in alphabetical order, but for
    the output. Parts of a job (`tokenize --shard`) must all be there."""
    from megatron_sky.data.tokens.merge import merge as join
    from megatron_sky.data.tokens.merge import pairs_in_folder

    named: dict[str, str] = {}
    for given in prefixes:
        pairs = pairs_in_folder(given, out=out) if Path(given).is_dir() else [_without_ending(given)]
        named |= {os.path.abspath(pair): pair for pair in pairs if os.path.abspath(pair) not in named}
    meta = join(list(named.values()), out, overwrite=overwrite)
    print(f"{out}: {len(named)} pairs merged")
    if meta is not None:
        _print_counts(meta)


@app.command()
def inspect(
    prefixes: Prefixes,
    tokenizer: TokenizerPath = None,
    document: Annotated[list[int] | None, typer.Option(help="Print this document's text; needs --tokenizer.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write a PNG of lengths and languages.")] = None,
) -> None:
    """Show pairs: counts, lengths of documents, languages, texts."""
    from megatron_sky.data.tokens.inspection import draw, overview
    from megatron_sky.tokenizer.kinds import load_tokenizer

    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    if document and loaded is None:
        raise typer.BadParameter("--document needs --tokenizer")
    views = [overview(_without_ending(prefix), loaded) for prefix in prefixes]
    for view in views:
        _print_overview(view)
        if loaded is not None:
            for number in document or ():
                _print_document(view.prefix, number, loaded)
    if picture is not None:
        draw(views, picture)
        print(f"{picture} written")


@app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="Folder: <split>/<domain>.jsonl goes into it.")],
    seed: Annotated[int, typer.Option(help="The same seed and sizes give the same bytes.")] = 1234,
    train_bytes: Annotated[int, typer.Option(min=1, help="Bytes of training text, all domains together.")] = 3_000_000,
    heldout_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes of each domain's validation set, and of its test set.")
    ] = 40_000,
) -> None:
    """Write a small bilingual corpus (web zh/en, code, papers, exercises) for trials that need no download."""
    from megatron_sky.data.synthetic import write_corpus

    files = write_corpus(out, seed=seed, train_bytes=train_bytes, heldout_bytes=heldout_bytes)
    for split, domains in files.items():
        print(f"{out / split}: {', '.join(f'{path.name} ({path.stat().st_size:,})' for path in domains.values())}")


@app.command()
def mix(
    recipe: Recipe,
) -> None:
    """Show how many tokens and epochs each source of a recipe gives over its run, and what the plan can't keep."""
    from megatron_sky.config.load import load_recipe
    from megatron_sky.data.sampling.mixture import mixture_table, open_plan
    from megatron_sky.trainer.sessions import sessions_of

    config = load_recipe(recipe)
    sessions = sessions_of(config).every
    plan = open_plan(
        config.data, seq_length=config.model.seq_length, sessions=[session.mixture for session in sessions]
    )
    for session, segment in zip(sessions, plan.segments, strict=True):
        if session.name:
            print(f"session {session.name}")
        print(mixture_table(segment).text)
    if plan.problems():
        raise typer.Exit(2)


def _parse_shard(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    index, _, count = given.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise typer.BadParameter(f"--shard = {given!r}: must be i/n with 0 <= i < n, as 3/64")
    return int(index), int(count)


def _parse_choice(given: str, choices: dict):
    if given not in choices:
        raise typer.BadParameter(f"{given!r}: must be one of {', '.join(choices)}")
    return choices[given]


def _without_ending(prefix: str) -> str:
    return prefix.removesuffix(".bin").removesuffix(".idx")


def _print_counts(meta) -> None:
    from megatron_sky.data.ingest.input_files import describe_files

    documents = meta.documents
    if meta.files is not None:
        print(describe_files(meta.files))
    print(
        f"documents: {documents.read:,} read = {documents.written:,} written + {documents.empty:,} empty + "
        f"{documents.rejected:,} rejected; {meta.num_tokens:,} tokens"
    )
    for what, counts in (("rejected", meta.rejected), ("note", meta.notes)):
        for name, count in counts.items():
            print(f"  {what}: {name} {count:,}{_reason(name)}")
    if meta.mask is not None:
        _print_mask(meta)


def _reason(name: str) -> str:
    from megatron_sky.data.chat.conversations import REASONS

    return f" ({REASONS[name]})" if name in REASONS else ""


def _print_mask(meta) -> None:
    mask = meta.mask
    answers = mask.answer_tokens + mask.rejected_tokens
    print(
        f"  template {mask.template} ({mask.template_sha256[:12]}); {mask.rows:,} rows of {mask.row_length:,} tokens: "
        f"answers {answers / meta.num_tokens:.1%}, padding {mask.padding_tokens / meta.num_tokens:.1%}"
    )
    if mask.cut_samples:
        print(f"  cut: {mask.cut_samples:,} conversations lost {mask.cut_tokens:,} tokens at their end")


def _print_document(prefix: str, number: int, tokenizer) -> None:
    """A document's text; of a packed sample its tokens, answers apart from what they answer."""
    from rich.console import Console
    from rich.text import Text

    from megatron_sky.data.tokens.inspection import show_document, show_sample
    from megatron_sky.data.tokens.mask import ANSWER, CONTEXT, PADDING, REJECTED

    print(f"--- document {number:,}")
    runs = show_sample(prefix, number, tokenizer)
    if runs is None:
        print(show_document(prefix, number, tokenizer))
        return
    looks = {CONTEXT: ("context", "cyan"), ANSWER: ("answer", "bold green"), PADDING: ("padding", "dim")}
    looks[REJECTED] = ("rejected", "bold red")
    console = Console(highlight=False, soft_wrap=True)
    for run in runs:
        name, style = looks[run.kind]
        shown = f"{len(run.pieces):,} tokens" if run.kind == PADDING else " ".join(map(visible, run.pieces))
        console.print(Text(f"{name:<9}"), Text(shown, style))


def _print_overview(view) -> None:
    print(f"{view.prefix}: {view.num_documents:,} documents, {view.num_tokens:,} tokens, {view.dtype}")
    if view.meta is not None:
        print(
            f"  tokenizer {view.meta.tokenizer.name} ({view.meta.tokenizer.sha256[:12]}), "
            f"unigram entropy {view.meta.unigram_entropy:.3f} nats"
        )
        if view.meta.mask is not None:
            _print_counts(view.meta)
    most = max(view.documents)
    for low, count in zip(view.edges, view.documents, strict=False):
        print(f"  {low:>10,} tokens or more {count:>12,} {'#' * round(40 * count / most)}")
    total = sum(view.language_tokens.values())
    for name, count in sorted(view.language_tokens.items(), key=lambda item: -item[1]):
        print(f"  {name}: {count / total:.1%} of the tokens of {view.sampled:,} documents")
