"""Text to token ids and back: SentencePiece models, Hugging Face's tokenizer.json, tiktoken's rank files.

A tokenizer's vocabulary is what its file holds; rows added to an embedding so that it divides are the model's matter
and never show here.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from megatron_sky.errors import DataError, MissingDependency
from megatron_sky.tokenizer import files as tokenizer_files

_EOD_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "<|im_end|>")
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")


class Tokenizer:
    """What the program asks of a tokenizer; the subclasses are the kinds of files.

    Attributes:
        name: the file's name.
        data: the file's bytes.
    """

    def __init__(self, data: bytes, name: str):
        self.data = data
        self.name = name

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no begin or end token is added."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are no valid UTF-8 come out as U+FFFD."""
        raise NotImplementedError

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
    def special_texts(self) -> tuple[str, ...]:
        """Spellings of control and reserved tokens, on which libraries differ when they occur in a text."""
        raise NotImplementedError

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class SentencePieceTokenizer(Tokenizer):
    """A `.model` file."""

    def __init__(self, data: bytes, name: str):
        from sentencepiece import SentencePieceProcessor

        super().__init__(data, name)
        self.processor = SentencePieceProcessor(model_proto=data)

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self.processor.decode([int(each) for each in ids])

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

    def is_reserved(self, token_id: int) -> bool:
        """Whether a token is a symbol that stands for itself in a text (user-defined, in SentencePiece's words)."""
        return self.piece(token_id) in self.special_texts and not (
            self.processor.is_control(token_id) or self.processor.is_unknown(token_id)
        )

    def as_huggingface(self):
        """The same vocabulary as a `tokenizers.Tokenizer`."""
        try:
            import tokenizers
        except ImportError:
            raise MissingDependency("tokenizers", "Hugging Face's form", "pip install 'megatron-sky[hf]'") from None
        return _huggingface_bpe(tokenizers, self)

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        kinds = ModelProto.SentencePiece
        special = (kinds.CONTROL, kinds.UNKNOWN, kinds.USER_DEFINED)
        return tuple(each.piece for each in ModelProto.FromString(self.data).pieces if each.type in special)


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
        self.library = Library.from_str(data.decode("utf-8"))
        self.library.no_truncation()
        self.library.no_padding()
        self._vocab = self.library.get_vocab(with_added_tokens=True)
        self._eod_id = self._special_id(settings, "eos_token", _EOD_NAMES)
        self._bos_id = self._special_id(settings, "bos_token", _BOS_NAMES)

    def _special_id(self, settings: Mapping[str, object], field: str, usual: Sequence[str]) -> int | None:
        named = settings.get(field)
        if isinstance(named, Mapping):
            named = named.get("content")
        if named is None:
            return next((self._vocab[each] for each in usual if each in self._vocab), None)
        if named not in self._vocab:
            raise DataError(
                f"{tokenizer_files.SETTINGS}: {field} = {named!r} is no token of the tokenizer {self.name} beside it\n"
                "  fix: name one of its tokens, or take the field out"
            )
        return self._vocab[named]

    def encode(self, text: str) -> list[int]:
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.library.decode([int(each) for each in ids], skip_special_tokens=False)

    def piece(self, token_id: int) -> str:
        return self.library.id_to_token(token_id)

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
    def special_texts(self) -> tuple[str, ...]:
        return tuple(token.content for token in self.library.get_added_tokens_decoder().values())


class TiktokenTokenizer(Tokenizer):
    """A `.tiktoken` rank file, read by gigatoken.

    The file holds ranks alone. How text is cut and which special tokens there are comes from the name for the published
    encodings, else from `<file>.json` beside it:
    {"pretokenizer": "cl100k", "special_tokens": {"<|endoftext|>": 100257}}.
    """

    def __init__(self, path: Path):
        super().__init__(path.read_bytes(), path.name)
        gigatoken = gigatoken_for(f"the tokenizer {path}")
        beside = tokenizer_files.settings_of_ranks(path)
        settings = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        if settings:
            self.data += beside.read_bytes()
        self.library = gigatoken.Tokenizer.from_tiktoken(path, **settings)
        self._special = dict(settings.get("special_tokens") or self.library.as_tiktoken()._special_tokens)

    def encode(self, text: str) -> list[int]:
        return self.library.encode(text).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(self.library.decode([int(each) for each in ids])).decode("utf-8", "replace")

    def piece(self, token_id: int) -> str:
        return bytes(self.library.decode([token_id])).decode("utf-8", "backslashreplace")

    @property
    def vocab_size(self) -> int:
        return self.library.vocab_size

    @property
    def eod_id(self) -> int | None:
        return next((self._special[name] for name in _EOD_NAMES if name in self._special), None)

    @property
    def bos_id(self) -> int | None:
        return next((self._special[name] for name in _BOS_NAMES if name in self._special), None)

    @property
    def special_texts(self) -> tuple[str, ...]:
        return tuple(self._special)


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
        if path.suffix == tokenizer_files.RANKS:
            return TiktokenTokenizer(path)
        if tokenizer_files.is_json(path):
            return HuggingFaceTokenizer(path.read_bytes(), path.name, _settings_beside(path))
        return SentencePieceTokenizer(path.read_bytes(), path.name)
    except OSError as error:
        raise DataError(
            f"tokenizer {path} can't be read: {error.strerror}\n  fix: give a SentencePiece .model, a tokenizer.json "
            "or a .tiktoken file; `megatron-sky tokenizer build` makes the first"
        ) from error
    except (DataError, MissingDependency):
        raise
    except Exception as error:  # the libraries raise bare Exception for a file they can't parse
        if path.suffix == ".model" and re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", path.read_bytes()[:4096]):
            raise DataError(
                f"tokenizer {path} holds tiktoken's ranks, as Llama 3's does, not a SentencePiece model\n"
                "  fix: give the tokenizer.json of the same model, or name the file .tiktoken, its .json beside it"
            ) from error
        what = {".json": "tokenizer.json", ".tiktoken": "tiktoken file"}.get(path.suffix, "SentencePiece model")
        raise DataError(f"tokenizer {path} is no {what} that can be read: {error}") from error


def _settings_beside(path: Path) -> Mapping[str, object]:
    beside = tokenizer_files.settings_of_json(path)
    return {} if beside is None else tokenizer_files.read_table(beside)


def find_in_hugging_face(folder: Path) -> Path | None:
    """The tokenizer's file in a Hugging Face folder: tokenizer.json where it has tokens that tokenizer.model lacks.

    Chat's symbols are often added to the one and not to the other. Raises DataError where one can't be read.
    """
    found = tokenizer_files.find_named(folder)
    whole = folder / tokenizer_files.JSON
    if found is None or found == whole or not whole.is_file():
        return found
    return whole if tokenizer_files.json_size(whole) > load_tokenizer(found).vocab_size else found


def gigatoken_for(needed_for: str):
    """The gigatoken module, or MissingDependency with the install command."""
    try:
        import gigatoken
    except ImportError:
        raise MissingDependency("gigatoken", needed_for, "pip install 'megatron-sky[corpus]'") from None
    return gigatoken


def _huggingface_bpe(tokenizers, source: SentencePieceTokenizer):
    """A BPE with SentencePiece's merges: every pair of pieces that joins to a piece, best score first."""
    pieces = [source.piece(number) for number in range(source.vocab_size)]
    scores = [source.processor.get_score(number) for number in range(source.vocab_size)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for number, piece in enumerate(pieces):
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(vocab[left], vocab[right], left, right) for left, right in pairs if left in vocab and right in vocab]
        merges += [(-scores[number], number, *pair) for pair in sorted(known)]
    merges.sort()
    model = tokenizers.models.BPE(
        vocab, [(left, right) for *_, left, right in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    special = [each for number, each in enumerate(pieces) if each in source.special_texts]
    made.add_special_tokens([tokenizers.AddedToken(each, normalized=False, special=True) for each in special])
    return made


def _known(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
