"""Which files a tokenizer is: those that `tokenizer.path` means, and those that a checkpoint keeps of them.

There are three kinds: a SentencePiece model, Hugging Face's tokenizer.json with the settings beside it, and tiktoken's
ranks (`NAME.tiktoken`, whose name may say the encoding) with `NAME.tiktoken.json` beside them.
"""

import shutil
from pathlib import Path

MODEL, JSON, RANKS = "tokenizer.model", "tokenizer.json", ".tiktoken"
# What Hugging Face's libraries write beside tokenizer.json.
SETTINGS = "tokenizer_config.json"
BESIDE_JSON = (SETTINGS, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def find(folder: Path) -> Path | None:
    """The tokenizer in `folder`: tokenizer.model, else tokenizer.json, else its only .tiktoken file."""
    ranks = list(folder.glob(f"*{RANKS}"))
    return find_named(folder) or (ranks[0] if len(ranks) == 1 else None)


def find_named(folder: Path) -> Path | None:
    """tokenizer.model in `folder`, else tokenizer.json: what a Hugging Face folder may have."""
    return next((folder / name for name in (MODEL, JSON) if (folder / name).is_file()), None)


def file_of(path: Path) -> Path:
    """The file that `path` means: itself, or the tokenizer in it where it is a folder that has one."""
    return (find(path) or path) if path.is_dir() else path


def is_json(path: Path) -> bool:
    """Whether the file is a tokenizer.json, also under another's name; no SentencePiece model begins with a brace.

    Raises OSError where it can't be read.
    """
    if path.suffix == ".json":
        return True
    with open(path, "rb") as file:
        return file.read(1) == b"{"


def settings_of_ranks(path: Path) -> Path:
    """The file beside a .tiktoken file that says what the ranks do not; it need not be there."""
    return path.with_name(path.name + ".json")


def settings_of_json(path: Path) -> Path | None:
    """The file beside a tokenizer.json that names its special tokens; None for one that is called otherwise, to which
    nothing beside it belongs."""
    return path.with_name(SETTINGS) if path.name == JSON else None


def copy(path: Path, folder: Path) -> None:
    """Copies the tokenizer that `path` means, with what belongs to it, so that `find` finds it in `folder`.

    Raises OSError.
    """
    path = file_of(path)
    if path.suffix == RANKS:
        beside = settings_of_ranks(path)
        for each in [path, *([beside] if beside.is_file() else [])]:
            shutil.copyfile(each, folder / each.name)
        return
    shutil.copyfile(path, folder / (JSON if is_json(path) else MODEL))
    if path.name == JSON:
        for name in [name for name in BESIDE_JSON if (path.parent / name).is_file()]:
            shutil.copyfile(path.parent / name, folder / name)
