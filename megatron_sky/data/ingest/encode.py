"""What one worker does with one block: parse its lines, split sentences where asked, turn texts into ids.

The result is bytes and small arrays, so that handing it to the writing process costs a copy and no more.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from megatron_sky.data.ingest.documents import Reject, parse_block
from megatron_sky.data.ingest.inputs import MAX_DOCUMENT_BYTES, Block, unreadable
from megatron_sky.data.ingest.sentences import SentenceSplitter
from megatron_sky.data.tokens.indexed import token_dtype
from megatron_sky.data.tokens.scan import LARGEST_COUNTED_ID, count_ids
from megatron_sky.distributed.cpu_memory import keep_freed_blocks
from megatron_sky.distributed.helpers import end_with
from megatron_sky.files import hash_range
from megatron_sky.tokenizer.encoder import BatchEncoder
from megatron_sky.tokenizer.kinds import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class EncodeOptions:
    """What decides the ids and the documents.

    Attributes:
        keys: names of the texts in an object or table; each makes a file pair of its own.
        append_eod: put the end-of-document id after each document.
        split_sentences: a document's sequences are its sentences.
        keep_newlines: keep the white space between sentences.
        max_document_bytes: longer documents are rejected.
        parse_special: spellings of control tokens in a text become those tokens.
        fast: see `BatchEncoder`.
    """

    keys: tuple[str, ...] = ("text",)
    append_eod: bool = True
    split_sentences: bool = False
    keep_newlines: bool = False
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    parse_special: bool = False
    fast: bool | None = None


@dataclass(frozen=True)
class EncodedTexts:
    """One key's ids: all tokens in a row, tokens of each sequence, sequences of each document.

    `counts`: how often each id occurs; None where the tokens are fewer than the vocabulary's.
    """

    tokens: bytes
    lengths: np.ndarray
    sequences: np.ndarray
    counts: np.ndarray | None


@dataclass(frozen=True)
class EncodedBlock:
    """The documents of a block, or a part of one, under each key, and the count of what else was in it."""

    texts: tuple[EncodedTexts, ...]
    lines: int
    blank: int
    documents: int
    empty: tuple[int, ...]
    rejects: list[Reject]
    notes: Counter = field(default_factory=Counter)
    source_xxh3: str | None = None


class BlockEncoder:
    """Callable from a `Block` to an `EncodedBlock`; one in each worker.

    `punkt`: what Punkt has learnt, where sentences are split.
    """

    def __init__(self, tokenizer: Tokenizer, options: EncodeOptions, punkt: object = None):
        self.options = options
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._encode = BatchEncoder(tokenizer, fast=options.fast, parse_special=options.parse_special)
        self._split = None
        if options.split_sentences:
            self._split = SentenceSplitter(punkt, keep_newlines=options.keep_newlines)

    def __call__(self, block: Block) -> EncodedBlock:
        parsed = parse_block(block, self.options.keys, self.options.max_document_bytes)
        columns = [[document[i] for document in parsed.documents] for i in range(len(self.options.keys))]
        texts = tuple(self._column(column) for column in columns)
        return EncodedBlock(
            texts=texts,
            lines=parsed.lines,
            blank=parsed.blank,
            documents=len(parsed.documents),
            empty=tuple(int((encoded.sequences == 0).sum()) for encoded in texts),
            rejects=parsed.rejects,
            notes=parsed.notes,
            source_xxh3=_hash(block) if block.end and block.ends_block else None,
        )

    def _column(self, column: Sequence[str | list[str]]) -> EncodedTexts:
        sentences, per_document = self._sentences(column)
        flat, lengths = self._encode(sentences)
        document_of = np.repeat(np.arange(len(column)), per_document)[lengths > 0]
        lengths = lengths[lengths > 0]
        sequences = np.bincount(document_of, minlength=len(column))
        tokens = flat.astype(self.dtype)
        if self.options.append_eod:
            assert self.tokenizer.eod_id is not None
            last = np.cumsum(sequences)[sequences > 0] - 1  # the last sequence of each document that has any
            tokens = np.insert(tokens, np.cumsum(lengths)[last], self.tokenizer.eod_id)
            lengths[last] += 1
        counts = None
        if self.tokenizer.vocab_size <= min(len(tokens), LARGEST_COUNTED_ID):
            counts = np.zeros(self.tokenizer.vocab_size, np.int32)
            count_ids(tokens, counts)
        return EncodedTexts(tokens.tobytes(), lengths.astype(np.int32), sequences.astype(np.int64), counts)

    def _sentences(self, column: Sequence[str | list[str]]) -> tuple[list[str], list[int]]:
        """All texts in a row, and how many of them each document has."""
        whole = [text for text in column if isinstance(text, str)]
        if self._split is None and len(whole) == len(column):
            return whole, [1] * len(column)
        split = self._split or (lambda text: [text])
        parts = [text if isinstance(text, list) else split(text) for text in column]
        return list(chain.from_iterable(parts)), list(map(len, parts))


def _hash(block: Block) -> str:
    """Of all of the block that it is a part of."""
    start, end = block.part_of or (block.start, block.end)
    try:
        return hash_range(block.path, start, end - start)
    except OSError as error:
        raise unreadable(block.path, error) from error


_worker_encoder: list[BlockEncoder] = []


def start_worker(parent: int, tokenizer_path: str, options: EncodeOptions, punkt: object) -> None:
    """Make this process's encoder; a process has one, so that blocks alone cross the border. `parent`: its pid."""
    end_with(parent, heeds_sigterm=True)
    keep_freed_blocks()  # for the next block: each page that is fetched anew costs time
    _worker_encoder[:] = [BlockEncoder(load_tokenizer(tokenizer_path), options, punkt)]


def encode_in_worker(block: Block) -> EncodedBlock:
    """Run the process's encoder."""
    (encoder,) = _worker_encoder
    return encoder(block)
