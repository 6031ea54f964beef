"""`megatron-sky convert ...` and `megatron-sky release`: the verbs of the `convert` package."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_sky.cli._common import log_to_screen, parse_size, verb_group

app = verb_group("Checkpoints to and from Hugging Face and Megatron-LM, on any machine.")

Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint folder, or a run's folder for its latest.")]
HfFolder = Annotated[Path, typer.Argument(help="Hugging Face folder.")]
Out = Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="Tokenizer file, where the checkpoint has none or another is meant.")
]
VocabSize = Annotated[
    int | None, typer.Option(min=1, help="True vocabulary size, where tokenizer and checkpoint leave it open.")
]
RecipeFile = Annotated[
    Path | None, typer.Option(help="YAML file with a model section, where the checkpoint describes no model.")
]
VocabMultiple = Annotated[
    int | None, typer.Option(min=1, help="Pad the embedding to a multiple of this many rows; default: the recipe's.")
]
FileSize = Annotated[str, typer.Option(help="Largest weight file in bytes, as 5G or 500M.")]


@app.command("to-hf")
def to_hf(
    checkpoint: Checkpoint,
    out: Out,
    arch: Annotated[
        str | None, typer.Option(help="LlamaForCausalLM, SkyworkForCausalLM or GPT2LMHeadModel; default: what fits.")
    ] = None,
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    recipe: RecipeFile = None,
    file_size: FileSize = "5G",
    merge: Annotated[
        bool, typer.Option("--merge", help="Of a checkpoint of adapters: merge them into the model.")
    ] = False,
    base: Annotated[Path | None, typer.Option(help="The model beneath adapters, where it was moved.")] = None,
) -> None:
    """A checkpoint of any layout, ours or Megatron-LM's, to a Hugging Face folder."""
    from megatron_sky.convert.adapters import check_merge
    from megatron_sky.convert.huggingface.folder import write_hf
    from megatron_sky.convert.sources import open_source

    log_to_screen()
    check_merge(checkpoint, merge=merge)
    source = open_source(checkpoint, tokenizer=tokenizer, vocab_size=vocab_size, recipe=recipe, base=base)
    _print_result(write_hf(source, out, architecture=arch, file_size=_bytes(file_size)))


@app.command("to-peft")
def to_peft(
    checkpoint: Checkpoint,
    out: Out,
    base_model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or name of the model that PEFT is to load it on.")
    ] = None,
) -> None:
    """A checkpoint of adapters to a folder that PEFT loads."""
    from megatron_sky.convert.adapters import write_peft
    from megatron_sky.convert.sources import resolve

    count = write_peft(resolve(checkpoint), out, base_model=base_model)
    print(f"{out}: {count:,} parameters")


@app.command("from-hf")
def from_hf(
    hf_folder: HfFolder,
    out: Out,
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    vocab_multiple: VocabMultiple = None,
    file_size: FileSize = "5G",
) -> None:
    """A Hugging Face folder to a native checkpoint, from which a run starts in any layout (checkpoint.init_from)."""
    from megatron_sky.convert.sources import HF

    _to_native(hf_folder, out, tokenizer, vocab_size, None, vocab_multiple, file_size, kinds=(HF,))


@app.command("from-megatron")
def from_megatron(
    checkpoint: Annotated[Path, typer.Argument(help="Megatron-LM's save folder, or one iteration's.")],
    out: Annotated[
        Path,
        typer.Argument(help="Folder to write; must not exist yet. With --with-optimizer: the run folder that goes on."),
    ],
    with_optimizer: Annotated[
        bool,
        typer.Option(
            "--with-optimizer",
            help="Take the run over in mid-flight: AdamW's state, step and samples, as OUT/checkpoints/step_NNNNNNN; "
            "`train` with train.run_dir=OUT goes on from there.",
        ),
    ] = False,
    distributed_optimizer: Annotated[
        bool | None,
        typer.Option(
            help="Form of the optimizer's state, as the recipe's parallel.distributed_optimizer; default: as it was."
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    recipe: RecipeFile = None,
    vocab_multiple: VocabMultiple = None,
    file_size: FileSize = "5G",
) -> None:
    """Megatron-LM's mp_rank files or torch_dist folder to a native checkpoint, or to a run that goes on."""
    from megatron_sky.convert.sources import MEGATRON_DIST, MEGATRON_SPLIT

    if with_optimizer:
        from megatron_sky.convert.megatron.take_over import take_over

        log_to_screen()
        done = take_over(
            checkpoint,
            out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            recipe=recipe,
            vocab_multiple=vocab_multiple,
            is_sharded=distributed_optimizer,
            file_size=_bytes(file_size),
        )
        _print_result(done)
        return
    kinds = (MEGATRON_DIST, MEGATRON_SPLIT)
    _to_native(checkpoint, out, tokenizer, vocab_size, recipe, vocab_multiple, file_size, kinds=kinds)


@app.command("to-megatron")
def to_megatron(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="Megatron-LM's save folder, which its --load names; may hold others.")],
    checkpoint_format: Annotated[
        Literal["torch_dist", "torch"],
        typer.Option("--format", help="torch_dist, which any layout loads, or torch: a file for each rank."),
    ] = "torch_dist",
    tp: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel ranks; of --format torch.")] = 1,
    pp: Annotated[int, typer.Option("--pp", min=1, help="Pipeline stages; of --format torch.")] = 1,
    optimizer: Annotated[
        bool, typer.Option(help="Hand over AdamW's state, so that Megatron-LM goes on; else the weights alone.")
    ] = True,
    distributed_optimizer: Annotated[
        bool | None,
        typer.Option(help="For --use-distributed-optimizer, or without it; default: as the run's recipe has it."),
    ] = None,
    transformer_impl: Annotated[
        Literal["transformer_engine", "local"],
        typer.Option(help="Megatron-LM's --transformer-impl, after which names and AdamW's step are spelled."),
    ] = "transformer_engine",
    vocab_size: VocabSize = None,
    file_size: FileSize = "5G",
) -> None:
    """A native checkpoint to one that Megatron-LM loads and goes on from."""
    from megatron_sky.convert.megatron.hand_back import hand_back

    log_to_screen()
    done = hand_back(
        checkpoint,
        out,
        checkpoint_format=checkpoint_format,
        tp_size=tp,
        pp_size=pp,
        with_optimizer=optimizer,
        is_sharded=distributed_optimizer,
        transformer_impl=transformer_impl,
        vocab_size=vocab_size,
        file_size=_bytes(file_size),
    )
    _print_result(done)


@app.command()
def check(
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint or Hugging Face folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    text: Annotated[
        Path | None, typer.Option(help="Text file to compare on; default: a few built-in passages.")
    ] = None,
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    recipe: RecipeFile = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens to compare, at most, in all passages.")] = 512,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest absolute difference of logits to accept.")] = 1e-4,
) -> None:
    """Compare two checkpoints by their logits on text, layer by layer in float32; exit code 4 when they differ."""
    from megatron_sky.convert.compare.check import compare

    log_to_screen()
    report = compare(
        a,
        b,
        text=text,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        recipe=recipe,
        max_tokens=max_tokens,
        tolerance=tolerance,
    )
    print(report)
    if not report.agree:
        raise typer.Exit(4)


def release(
    run_dir: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the series; default: release in the run folder.")] = None,
    marks: Annotated[
        str | None, typer.Option(help="Token marks, as 500B,1T,1.5T; default: checkpoint.release_marks of the recipe.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture, as in convert to-hf.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Model name in cards and folders; default: its series', else the run folder's.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload to this Hugging Face repository, one revision a mark (needs a token).")
    ] = None,
    file_size: FileSize = "5G",
) -> None:
    """Export the series of intermediate checkpoints at token marks, each with a model card, verified and resumable."""
    from megatron_sky.convert.release.series import release_run

    log_to_screen()
    given = None if marks is None else _marks(marks)
    for folder in release_run(
        run_dir, out, marks=given, architecture=arch, name=name, push=push, file_size=_bytes(file_size)
    ):
        print(folder)


def _to_native(
    path: Path,
    out: Path,
    tokenizer: Path | None,
    vocab_size: int | None,
    recipe: Path | None,
    vocab_multiple: int | None,
    file_size: str,
    *,
    kinds: tuple[str, ...],
) -> None:
    from megatron_sky.convert.native import write_native
    from megatron_sky.convert.sources import open_source
    from megatron_sky.errors import CheckpointError

    log_to_screen()
    source = open_source(path, tokenizer=tokenizer, vocab_size=vocab_size, recipe=recipe)
    if source.kind not in kinds:
        raise CheckpointError(f"{source.folder}: is a {source.kind}, not a {' or '.join(kinds)}")
    _print_result(write_native(source, out, vocab_multiple=vocab_multiple, file_size=_bytes(file_size)))


def _bytes(size: str) -> int:
    return parse_size(size, "--file-size", "give it as 5G or 500M")


def _marks(given: str) -> list[int]:
    from megatron_sky.errors import ConfigError, Problem

    marks = [parse_size(mark, "--marks", "give them as 500B,1T,1.5T") for mark in given.split(",") if mark.strip()]
    if not marks:
        raise ConfigError(Problem("--marks", "names no mark", "give them as 500B,1T,1.5T", given))
    return marks


def _print_result(done) -> None:
    print(f"{done.folder}: {done.num_tensors} tensors, {done.num_bytes / 1e9:.2f} GB, each compared as it was written")
