"""Text to token ids and back: SentencePiece models, Hugging Face's tokenizer.json, tiktoken's rank files.

A tokenizer's vocabulary is what its file holds; rows added to an embedding so that it divides are the model's matter
and never show here.

A text never makes a control token: `</s>` or `<|endoftext|>` in a document is so many characters, whichever library
reads the tokenizer. `parse_special` asks for the tokens.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, ModuleType

from megatron_sky.errors import DataError, MissingDependency, SkyError
from megatron_sky.files import parse_json, read_bytes, read_json
from megatron_sky.tokenizer import files as tokenizer_files

_LENGTHS = ("truncation", "padding")  # of a tokenizer.json: their numbers are no ids, and both are switched off
MAX_VOCAB_SIZE = 1 << 24
"""Tokens: the largest vocabularies in use have a fiftieth of it, and much is made for each."""
_EOD_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "<|im_end|>")
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")


class Tokenizer:
    """What the program asks of a tokenizer; the subclasses are the kinds of files.

    Attributes:
        name: the file's name.
        data: the file's bytes.
        control_tokens: tokens that only a program puts into a sequence (begin, end, and the like), id by spelling.
        reserved_tokens: tokens that are one token wherever their spelling stands in a text (user-defined or added
            symbols), id by spelling.
    """

    def __init__(self, data: bytes, name: str):
        self.data = data
        self.name = name

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text; no begin or end token is added.

        `parse_special`: the spelling of a control token in the text becomes that token; else it is characters.
        """
        with self._failures_told():
            return self._encode_parsed(text) if parse_special else self._encode_plain(text)

    def _encode_plain(self, text: str) -> list[int]:
        raise NotImplementedError

    def _encode_parsed(self, text: str) -> list[int]:
        """What stands between control tokens is encoded on its own."""
        ids, at = [], 0
        for match in self._control_spelling.finditer(text) if self._control_spelling else ():
            ids += [*self._encode_plain(text[at : match.start()]), self.control_tokens[match.group()]]
            at = match.end()
        return ids + self._encode_plain(text[at:])

    @cached_property
    def _control_spelling(self) -> re.Pattern | None:
        return any_of(self.control_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are no valid UTF-8 come out as U+FFFD."""
        with self._failures_told():
            return self._decode([int(token_id) for token_id in ids])

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Files that a library takes when it loads them may fail when they are used. Raises DataError then."""
        try:
            yield
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise DataError(
                f"the tokenizer {self.name} fails: {error}\n  fix: fetch or copy its file again; where token ids are "
                "turned into text, give the tokenizer that made them"
            ) from error

    def piece(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        raise NotImplementedError

    @property
    def eod_id(self) -> int | None:
        """The id that ends a document, or None where the vocabulary has none."""
        raise NotImplementedError

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None where the vocabulary has none."""
        raise NotImplementedError

    @property
    def control_tokens(self) -> Mapping[str, int]:
        raise NotImplementedError

    @property
    def reserved_tokens(self) -> Mapping[str, int]:
        raise NotImplementedError

    @property
    def special_texts(self) -> tuple[str, ...]:
        """Spellings of control, reserved and unknown tokens, which libraries read in different ways."""
        return (*self.control_tokens, *self.reserved_tokens)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class SentencePieceTokenizer(Tokenizer):
    """A `.model` file."""

    def __init__(self, data: bytes, name: str):
        from sentencepiece import SentencePieceProcessor

        super().__init__(data, name)
        if not data:
            raise ValueError("it is empty")  # which the library takes for no model given yet
        self.processor = SentencePieceProcessor(model_proto=data)

    def _encode_plain(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def piece(self, token_id: int) -> str:
        return self.processor.id_to_piece(token_id)

    @property
    def vocab_size(self) -> int:
        return self.processor.get_piece_size()

    @property
    def eod_id(self) -> int | None:
        return _known(self.processor.eos_id())

    @property
    def bos_id(self) -> int | None:
        return _known(self.processor.bos_id())

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        return dict(self._pieces("CONTROL"))

    @cached_property
    def reserved_tokens(self) -> Mapping[str, int]:
        return dict(self._pieces("USER_DEFINED"))

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        return (*super().special_texts, *dict(self._pieces("UNKNOWN")))

    def _pieces(self, kind: str) -> Iterator[tuple[str, int]]:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        wanted = ModelProto.SentencePiece.Type.Value(kind)
        for token_id, piece in enumerate(ModelProto.FromString(self.data).pieces):
            if piece.type == wanted:
                yield piece.piece, token_id


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` file.

    Truncation and padding that are kept in the file are switched off: a text has all its tokens and no others.

    Args:
        settings: what tokenizer_config.json beside it says; the end and begin tokens that it names go before those
            that are known by their usual spelling.
    """

    def __init__(self, data: bytes, name: str, settings: Mapping[str, object] = MappingProxyType({})):
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise MissingDependency("tokenizers", f"the tokenizer {name}", "pip install 'megatron-sky[hf]'") from None
        super().__init__(data, name)
        _check_ids(parse_json(data))
        self.library = Library.from_str(data.decode("utf-8"))
        self.library.no_truncation()
        self.library.no_padding()
        self._vocab = self.library.get_vocab(with_added_tokens=True)
        self._eod_id = self._role_id(settings, "eos_token", _EOD_NAMES)
        self._bos_id = self._role_id(settings, "bos_token", _BOS_NAMES)
        self._make_special(self._eod_id, self._bos_id)
        self.library.encode_special_tokens = True  # as characters

    def _role_id(self, settings: Mapping[str, object], field: str, usual: Sequence[str]) -> int | None:
        """The id of the token with a role: the one that the settings name, else the first usual spelling."""
        named = settings.get(field)
        if isinstance(named, Mapping):
            named = named.get("content")
        if named is None:
            return next((self._vocab[spelling] for spelling in usual if spelling in self._vocab), None)
        if named not in self._vocab:
            raise DataError(
                f"{tokenizer_files.SETTINGS}: {field} = {named!r} is no token of the tokenizer {self.name} beside it\n"
                "  fix: name one of its tokens, or take the field out"
            )
        return self._vocab[named]

    def _make_special(self, *ids: int | None) -> None:
        """A token with a role is a control token, also where the file has it as a plain one."""
        from tokenizers import AddedToken

        added = self.library.get_added_tokens_decoder()
        for token_id in {each for each in ids if each is not None}:
            if token_id not in added or not added[token_id].special:
                self.library.add_special_tokens([AddedToken(self.piece(token_id), normalized=False, special=True)])

    def _encode_plain(self, text: str) -> list[int]:
        encoding = self.library.encode(text, add_special_tokens=False)
        if self._control_ids.isdisjoint(encoding.ids):
            return encoding.ids
        return self._encode_in_parts(text, encoding)

    def _encode_in_parts(self, text: str, encoding) -> list[int]:
        """For models in which a text reaches a control token's piece by itself (unigram, whole words): the text is cut
        within each such spelling."""
        places = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = [start + 1 for token_id, (start, _) in places if token_id in self._control_ids]
        parts = (text[start:end] for start, end in pairwise([0, *cuts, len(text)]))
        return [token_id for part in parts for token_id in self.library.encode(part, add_special_tokens=False).ids]

    def _encode_parsed(self, text: str) -> list[int]:
        self.library.encode_special_tokens = False
        try:
            return self.library.encode(text, add_special_tokens=False).ids
        finally:
            self.library.encode_special_tokens = True

    def _decode(self, ids: list[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=False)

    def piece(self, token_id: int) -> str:
        spelling = self.library.id_to_token(token_id)
        assert spelling is not None, f"{token_id} is no token's id"
        return spelling

    @property
    def vocab_size(self) -> int:
        return max(self._vocab.values()) + 1

    @property
    def eod_id(self) -> int | None:
        return self._eod_id

    @property
    def bos_id(self) -> int | None:
        return self._bos_id

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        others = {self._unknown_id} - {self._eod_id, self._bos_id}
        return {spelling: token_id for spelling, token_id in self._added(special=True) if token_id not in others}

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control_tokens.values())

    @cached_property
    def reserved_tokens(self) -> Mapping[str, int]:
        return dict(self._added(special=False))

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        return tuple(token.content for token in self.library.get_added_tokens_decoder().values())

    def _added(self, *, special: bool) -> Iterator[tuple[str, int]]:
        for token_id, token in self.library.get_added_tokens_decoder().items():
            if token.special == special:
                yield token.content, token_id

    @cached_property
    def _unknown_id(self) -> int | None:
        """The id of what the vocabulary lacks, which any text may have."""
        model = parse_json(self.data)["model"]
        return model.get("unk_id", self._vocab.get(model.get("unk_token")))


class TiktokenTokenizer(Tokenizer):
    """A `.tiktoken` rank file, read by gigatoken.

    The file holds ranks alone. How text is cut and which special tokens there are comes from the name for the published
    encodings, else from `<file>.json` beside it:
    {"pretokenizer": "cl100k", "special_tokens": {"<|endoftext|>": 100257}}.
    """

    def __init__(self, path: Path):
        super().__init__(read_bytes(path), path.name)
        gigatoken = gigatoken_for(f"the tokenizer {path}")
        beside = tokenizer_files.settings_of_ranks(path)
        settings = read_json(beside) if beside.exists() else {}
        if settings:
            self.data += read_bytes(beside)
        self._whole = gigatoken.Tokenizer.from_tiktoken(path, **settings)
        # gigatoken has no way of reading a special token's spelling as text, but one that knows none does.
        self.library = gigatoken.Tokenizer.from_tiktoken(path, **{**settings, "special_tokens": {}})
        self._control_tokens = dict(settings.get("special_tokens") or self._whole.as_tiktoken()._special_tokens)

    @property
    def control_tokens(self) -> Mapping[str, int]:
        return self._control_tokens

    @property
    def reserved_tokens(self) -> Mapping[str, int]:
        return {}

    def _encode_plain(self, text: str) -> list[int]:
        return self.library.encode(text).tolist()

    def _encode_parsed(self, text: str) -> list[int]:
        return self._whole.encode(text).tolist()

    def _decode(self, ids: list[int]) -> str:
        return bytes(self._whole.decode(ids)).decode("utf-8", "replace")

    def piece(self, token_id: int) -> str:
        return bytes(self._whole.decode([token_id])).decode("utf-8", "backslashreplace")

    @property
    def vocab_size(self) -> int:
        return self._whole.vocab_size

    @property
    def eod_id(self) -> int | None:
        return next((self.control_tokens[name] for name in _EOD_NAMES if name in self.control_tokens), None)

    @property
    def bos_id(self) -> int | None:
        return next((self.control_tokens[name] for name in _BOS_NAMES if name in self.control_tokens), None)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer: SentencePiece's `.model`, Hugging Face's `tokenizer.json`, or tiktoken's `.tiktoken`.

    `path` is the file, or a folder that holds one.

    Raises:
        DataError: the file is missing or not what its ending says.
    """
    path = tokenizer_files.file_of(Path(path))
    if path.is_dir():
        raise DataError(
            f"tokenizer {path}: the folder holds neither tokenizer.model nor tokenizer.json nor one .tiktoken file\n"
            "  fix: name the file"
        )
    try:
        tokenizer = _open(path)
        if not 0 < tokenizer.vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(f"its largest token id is {tokenizer.vocab_size - 1:,}, ids go to {MAX_VOCAB_SIZE - 1:,}")
        return tokenizer
    except OSError as error:
        raise DataError(
            f"tokenizer {path} can't be read: {error.strerror}\n  fix: give a SentencePiece .model, a tokenizer.json "
            "or a .tiktoken file; `megatron-sky tokenizer build` makes the first"
        ) from error
    except (DataError, MissingDependency):
        raise
    except BaseException as error:  # the libraries raise bare Exception for a file they can't parse, or panic
        if not _is_failure(error):
            raise
        other = None if path.suffix == tokenizer_files.RANKS else tokenizer_files.other_format(path)
        if other is not None:
            raise DataError(f"tokenizer {path} is {other}") from error
        what = {".json": "tokenizer.json", ".tiktoken": "tiktoken file"}.get(path.suffix, "SentencePiece model")
        raise DataError(
            f"tokenizer {path} is no {what} that can be read: {error}\n  fix: fetch or copy it again, or give a "
            "SentencePiece .model, a tokenizer.json or a .tiktoken file"
        ) from error


def _check_ids(content: object) -> None:
    """Raises ValueError for an id that the library would make room for: it ends the process where there is none."""
    pending, largest = [content], 0
    while pending:
        node = pending.pop()
        if isinstance(node, dict | list):
            pending += [node[key] for key in node if key not in _LENGTHS] if isinstance(node, dict) else node
        elif type(node) is int:
            largest = max(largest, node)
    if largest >= MAX_VOCAB_SIZE:
        raise ValueError(f"it holds the number {largest:,}, and ids go to {MAX_VOCAB_SIZE - 1:,}")


def _open(path: Path) -> Tokenizer:
    if path.suffix == tokenizer_files.RANKS:
        return TiktokenTokenizer(path)
    if tokenizer_files.is_json(path):
        return HuggingFaceTokenizer(read_bytes(path), path.name, _settings_beside(path))
    return SentencePieceTokenizer(read_bytes(path), path.name)


def _is_failure(error: BaseException) -> bool:
    """Whether a library failed: they raise bare Exceptions, or panic."""
    is_failure = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return is_failure and not isinstance(error, SkyError)


def any_of(spellings: Iterable[str]) -> re.Pattern | None:
    """Matches any of the spellings, the longest where several begin at one place; None where there are none."""
    ordered = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _settings_beside(path: Path) -> Mapping[str, object]:
    beside = tokenizer_files.settings_of_json(path)
    return {} if beside is None else tokenizer_files.read_table(beside)


def find_in_hugging_face(folder: Path) -> Path | None:
    """The tokenizer's file in a Hugging Face folder: tokenizer.json where it has tokens that tokenizer.model lacks.

    Chat's symbols are often added to the one and not to the other. Raises DataError where one can't be read.
    """
    named = tokenizer_files.find_named(folder)
    whole = folder / tokenizer_files.JSON
    if named is None or named == whole or not whole.is_file():
        return named
    return whole if tokenizer_files.json_size(whole) > load_tokenizer(named).vocab_size else named


def gigatoken_for(needed_for: str) -> ModuleType:
    """The gigatoken module, or MissingDependency with the install command."""
    try:
        import gigatoken
    except ImportError:
        raise MissingDependency("gigatoken", needed_for, "pip install 'megatron-sky[corpus]'") from None
    return gigatoken


def _known(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
