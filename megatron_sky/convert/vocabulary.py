"""How many rows of an embedding are tokens. Never guessed: rows added to make a size divisible look like any other."""

from pathlib import Path

from megatron_sky.convert.json_object import read_object
from megatron_sky.errors import CheckpointError
from megatron_sky.tokenizer.kinds import load_tokenizer


def true_vocab_size(where: Path, *, rows: int, described: int | None, tokenizer: int | None, flag: int | None) -> int:
    """The true vocabulary size, in tokens.

    `described`: what the checkpoint's own recipe or config says; `tokenizer`: the tokenizer's size; `flag`: the user's
    word, which settles a contradiction between the two. Raises CheckpointError where they contradict each other or the
    embedding's `rows`, naming the numbers.
    """
    known = {name: size for name, size in (("its config", described), ("its tokenizer", tokenizer)) if size is not None}
    shown = " and ".join(f"{name} says {size:,}" for name, size in known.items())
    if flag is None and not known:
        raise CheckpointError(
            f"{where}: nothing tells how many of the embedding's {rows:,} rows are tokens and how many are padding\n"
            "  fix: give --tokenizer FILE, or --vocab-size N"
        )
    if flag is None and len(set(known.values())) > 1:
        raise CheckpointError(
            f"{where}: the vocabulary's size is contradictory: {shown}\n"
            f"  fix: say which with --vocab-size {' or '.join(map(str, known.values()))}"
        )
    if flag is not None and known and flag not in known.values():
        raise CheckpointError(f"{where}: --vocab-size {flag:,} contradicts the checkpoint: {shown}")
    size = flag if flag is not None else next(iter(known.values()))
    if size > rows:
        raise CheckpointError(
            f"{where}: the vocabulary has {size:,} tokens, but the embedding only {rows:,} rows\n"
            "  fix: give the tokenizer that the model was trained with"
        )
    return size


def tokenizer_size(tokenizer: Path | None) -> int | None:
    """Tokens of a tokenizer file, with those that Hugging Face files beside it add; None without one."""
    if tokenizer is None:
        return None
    return load_tokenizer(tokenizer).vocab_size + tokens_beside(tokenizer)


def tokens_beside(tokenizer: Path | None) -> int:
    """How many tokens the Hugging Face files beside a tokenizer file add that are not in it."""
    if tokenizer is None:
        return 0
    size = load_tokenizer(tokenizer).vocab_size
    return max([size, *(token_id + 1 for token_id in _added_ids(tokenizer.parent))]) - size


def _added_ids(folder: Path) -> list[int]:
    added: list[int] = []
    if (folder / "added_tokens.json").is_file():
        added += read_object(folder / "added_tokens.json").values()
    if (folder / "tokenizer_config.json").is_file():
        added += map(int, read_object(folder / "tokenizer_config.json").get("added_tokens_decoder", {}))
    return added
