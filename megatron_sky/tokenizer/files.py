"""Which files a tokenizer is: those that `tokenizer.path` means, and those that a checkpoint keeps of them.

There are three kinds: a SentencePiece model, Hugging Face's tokenizer.json with the settings beside it, and tiktoken's
ranks (`NAME.tiktoken`, whose name may say the encoding) with `NAME.tiktoken.json` beside them.
"""

import re
import shutil
from pathlib import Path

from megatron_sky.errors import DataError
from megatron_sky.files import open_regular, parse_json, read_bytes, read_json

MODEL, JSON, RANKS = "tokenizer.model", "tokenizer.json", ".tiktoken"
SETTINGS = "tokenizer_config.json"
# What Hugging Face's libraries write beside tokenizer.json.
CHAT_TEMPLATE = "chat_template.jinja"  # of any tokenizer: it goes with it wherever it goes
BESIDE_JSON = (SETTINGS, "special_tokens_map.json", "added_tokens.json", CHAT_TEMPLATE)


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
    with open_regular(path) as file:
        return file.read(1) == b"{"


def to_json(vocab: str, merges: str | None = "merges.txt") -> str:
    """How to make a tokenizer.json of what the older tokenizers have: GPT-2's two files, or BERT's one."""
    library, files = (
        ("ByteLevelBPETokenizer", f"{vocab!r}, {merges!r}") if merges else ("BertWordPieceTokenizer", f"{vocab!r}")
    )
    return (
        f"make a tokenizer.json of {vocab}{f' and {merges}' if merges else ''} and give that:\n"
        f"       python -c \"from tokenizers import {library} as T; T({files}).save('tokenizer.json')\""
    )


def other_format(path: Path) -> str | None:
    """What a file is that none of the three kinds of tokenizers reads, in words, with the fix; None where not known."""
    data = read_bytes(path)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        return (
            "a file of tiktoken's ranks, which says neither how text is cut nor what the special tokens are\n"
            f"  fix: give the tokenizer.json of the same model; or copy it to NAME{RANKS} and write NAME{RANKS}.json "
            'beside it: {"pretokenizer": "cl100k", "special_tokens": {"<|end_of_text|>": 128001}} with its own values'
        )
    try:
        content = parse_json(data)
    except ValueError:
        return None
    if isinstance(content, dict) and content and all(type(token_id) is int for token_id in content.values()):
        return f"the vocabulary of a BPE without its merges (GPT-2's vocab.json)\n  fix: {to_json(str(path))}"
    ranks = content.get("vocab") if isinstance(content, dict) else content
    if isinstance(ranks, list) and ranks and isinstance(ranks[0], dict) and "token_bytes" in ranks[0]:
        return (
            "a list of ranks for tiktoken (tekken.json, Megatron-LM's TikTokenizer), which is not read\n"
            "  fix: give the tokenizer.json of the same model"
        )
    return None


def settings_of_ranks(path: Path) -> Path:
    """The file beside a .tiktoken file that says what the ranks do not; it need not be there."""
    return path.with_name(path.name + ".json")


def settings_of_json(path: Path) -> Path | None:
    """The file beside a tokenizer.json that names its special tokens; None for one that is called otherwise, to which
    nothing beside it belongs."""
    return path.with_name(SETTINGS) if path.name == JSON else None


def adds_begin(path: Path) -> bool:
    """Whether those who load the tokenizer's folder by Hugging Face's libraries get a begin token before a text.

    The template in tokenizer.json decides where there is one, else `add_bos_token` in the settings beside. A file
    under another name has no settings. Raises DataError where these can't be read.
    """
    if path.name not in (MODEL, JSON):
        return False
    template = _template(read_table(path.with_name(JSON)).get("post_processor"))
    if template is not None:
        return bool(template) and "SpecialToken" in template[0]
    return read_table(path.with_name(SETTINGS)).get("add_bos_token") is True


def read_table(path: Path) -> dict:
    """The JSON object in a file, empty where there is no file. Raises DataError."""
    try:
        content = read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}\n  fix: fix it, or take it away") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no JSON object\n  fix: fix it, or take it away")
    return content


def _template(processor: dict | None) -> list | None:
    """What a tokenizer.json's `post_processor` makes of one text, piece by piece; None where it has no template."""
    if processor is None:
        return None
    if processor.get("type") == "Sequence":
        templates = map(_template, processor["processors"])
        return next((template for template in templates if template is not None), None)
    return processor.get("single") if processor.get("type") == "TemplateProcessing" else None


def json_size(path: Path) -> int:
    """One more than the largest id of a tokenizer.json, added tokens included. Raises DataError."""
    content = read_table(path)
    try:
        vocab = content["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
        return 1 + max([*ids, *(token["id"] for token in content.get("added_tokens") or ())])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is no tokenizer.json: {error}") from error


def copy(path: Path, folder: Path, *, settings: bool = False) -> None:
    """Copies the tokenizer that `path` means, with what belongs to it, so that `find` finds it in `folder`.

    `settings`: also what Hugging Face's libraries keep beside a tokenizer.model and training does not look at.
    Raises OSError.
    """
    for source, name in files_of(path, settings=settings):
        shutil.copyfile(source, folder / name)


def read(path: Path) -> dict[str, bytes]:
    """The content of the files that `copy` takes, by their names in the copy, the tokenizer's own first.

    Raises DataError.
    """
    try:
        return {name: read_bytes(source) for source, name in files_of(path)}
    except OSError as error:
        raise DataError(f"{error.filename or path}: can't be read: {error.strerror}\n  fix: restore it") from None


def files_of(path: Path, *, settings: bool = False) -> list[tuple[Path, str]]:
    """The files that `copy` takes, each with its name in the copy, the tokenizer's own first. Raises OSError."""
    path = file_of(path)
    if path.suffix == RANKS:
        beside = settings_of_ranks(path)
        return [(source, source.name) for source in (path, beside) if source == path or beside.is_file()]
    kept = JSON if is_json(path) else MODEL
    names = {JSON: BESIDE_JSON, MODEL: (JSON, *BESIDE_JSON) if settings else ()}[kept] if path.name == kept else ()
    if kept == MODEL and CHAT_TEMPLATE not in names:
        names = (*names, CHAT_TEMPLATE)
    others = [(path.with_name(name), name) for name in names if path.with_name(name).is_file()]
    return [(path, kept), *others]
