"""What a model's tokenizer does, whichever library it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_sky.errors import ConfigError, DataError, Problem
from megatron_sky.tokenizer.kinds import Tokenizer, load_tokenizer

BEGINS = ("auto", "bos", "eod", "none")  # what may go before a document, see `TextCoder.begin_id`


@dataclass(frozen=True)
class TextCoder:
    """What a model's tokenizer does here.

    Attributes:
        vocab_size: one more than the largest id.
        encode: text -> ids, nothing added.
        decode: ids -> text.
        adds_bos: whether its users get the begin token without asking.
        sha256: of the tokenizer's file; equal for the same vocabulary file wherever it lies.
        encode_special: as `encode`, and the spelling of a control token becomes that token; for a chat template's text.
        special: `bos_token` and `eos_token` as the vocabulary spells them, for a chat template.
    """

    vocab_size: int
    name: str
    sha256: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    bos_id: int | None
    eod_id: int | None
    adds_bos: bool = False
    encode_special: Callable[[str], list[int]] | None = None
    special: Mapping[str, str | None] = field(default_factory=dict)

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of a chat template's text, in which control tokens are spelled out."""
        return (self.encode_special or self.encode)(text)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that is to be continued, with the begin token where the tokenizer's users get one.

        An empty text is the token that begins a document. Raises DataError where there is no such token.
        """
        begin = [] if self.bos_id is None or not self.adds_bos else [self.bos_id]
        if ids := [*begin, *self.encode(text)]:
            return ids
        first = self.begin_id("auto")
        if first is None:
            raise DataError(f"tokenizer {self.name}: has neither a begin nor an end token to predict after")
        return [first]

    def begin_id(self, begin: str) -> int | None:
        """The id that goes before a document. `auto`: what went there in training, as far as the tokenizer tells.

        The begin token where the tokenizer adds one by itself; else the token that ended the document before; else
        the begin token; else nothing. Raises ConfigError where `begin` names a token that it has not.
        """
        if begin == "auto":
            order = (self.bos_id, self.eod_id) if self.adds_bos else (self.eod_id, self.bos_id)
            return next((token for token in order if token is not None), None)
        token = {"bos": self.bos_id, "eod": self.eod_id, "none": None}[begin]
        if token is None and begin != "none":
            raise ConfigError(Problem("--begin", f"the tokenizer {self.name} has no such token", "use auto", begin))
        return token


def file_coder(path: Path, *, adds_bos: bool = False) -> TextCoder:
    """The coder of a tokenizer file. Raises DataError where it can't be read."""
    tokenizer = load_tokenizer(path)
    return TextCoder(
        vocab_size=tokenizer.vocab_size,
        name=tokenizer.name,
        sha256=tokenizer.sha256,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        bos_id=tokenizer.bos_id,
        eod_id=tokenizer.eod_id,
        adds_bos=adds_bos and tokenizer.bos_id is not None,
        encode_special=lambda text: tokenizer.encode(text, parse_special=True),
        special=special_of(tokenizer),
    )


def special_of(tokenizer: Tokenizer) -> dict[str, str | None]:
    """The tokenizer's begin and end tokens under a chat template's names."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eod_id}
    return {name: None if token_id is None else tokenizer.piece(token_id) for name, token_id in ids.items()}
