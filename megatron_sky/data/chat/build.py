"""Files of conversations into one pair of packed samples with its mask: `data chat`.

Rows go to temporary names; the pair, its mask and its meta file get theirs together at the end, the index last, so that
an interrupted job leaves nothing that could be taken for whole. It is begun anew then: conversations are few.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_sky.data.chat.conversations import REASONS, Unusable
from megatron_sky.data.chat.packing import Packer, padded
from megatron_sky.data.chat.pairs import PairMaker
from megatron_sky.data.chat.records import Record, read_records
from megatron_sky.data.chat.samples import Sample, SampleMaker
from megatron_sky.data.ingest.input_files import InputFiles, list_files
from megatron_sky.data.ingest.inputs import BLOCK_BYTES
from megatron_sky.data.tokens.indexed import bin_path, idx_path, token_dtype
from megatron_sky.data.tokens.mask import ANSWER, PADDING, REJECTED, mask_path, pack_header
from megatron_sky.data.tokens.meta import (
    MASKED_VERSION,
    DocumentCounts,
    FileRecord,
    MaskRecord,
    Meta,
    hash_blocks,
    meta_path,
)
from megatron_sky.data.tokens.scan import describe
from megatron_sky.data.tokens.writer import IndexedWriter
from megatron_sky.errors import DataError
from megatron_sky.files import write_bytes
from megatron_sky.tokenizer.chat_template import ChatTemplate
from megatron_sky.tokenizer.kinds import Tokenizer

KEPT_REJECTS = 1000


@dataclass(frozen=True)
class ChatOptions:
    """What to make of the conversations.

    Attributes:
        row_length: tokens in a row; the model.seq_length of the run that will read it.
        cuts_long: a conversation longer than a row loses its end, instead of being left out.
        strict: stop at the first conversation that can't be used.
        overwrite: replace files that are there already.
        pairs: the objects are preference data, a chosen and a rejected answer each.
    """

    row_length: int
    cuts_long: bool = False
    strict: bool = False
    overwrite: bool = False
    pairs: bool = False


@dataclass
class _Counts:
    read: int = 0
    written: int = 0
    cut_samples: int = 0
    cut_tokens: int = 0
    rejected: Counter = field(default_factory=Counter)
    rejects: list[bytes] = field(default_factory=list)
    by_mask: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    rows: int = 0
    num_tokens: int = 0


def write_chat(
    inputs: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    options: ChatOptions,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Meta:
    """Writes `<out>.bin`, `.idx`, `.mask` and `.meta.json`, and `.rejects.jsonl` where conversations were left out.

    Args:
        report: called with (bytes read, bytes in all).

    Raises:
        DataError: no conversation can be used, a file can't be read, the output is in the way; with `strict` the first
            conversation that can't be used. Nothing is written then but the rejects.
    """
    return _Job(inputs, str(out), tokenizer, template, options).run(report)


def _maker(tokenizer: Tokenizer, template: ChatTemplate, options: ChatOptions) -> Callable[[object], Sample]:
    """What makes a sample, or a pair, of an object. Two that are cut have half a row each."""
    length = options.row_length // 2 if options.pairs and options.cuts_long else options.row_length
    make = SampleMaker(tokenizer, template, row_length=length, cuts_long=options.cuts_long)
    return PairMaker(make, row_length=options.row_length) if options.pairs else make


class _Job:
    def __init__(
        self,
        inputs: Sequence[str | Path],
        prefix: str,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        options: ChatOptions,
    ):
        self.prefix, self.tokenizer, self.template, self.options = prefix, tokenizer, template, options
        self.make = _maker(tokenizer, template, options)
        self.counts = _Counts()
        self.rejects_path, self.mask_temporary = Path(f"{prefix}.rejects.jsonl"), Path(f"{prefix}.mask.tmp")
        there = [path for path in (bin_path(prefix), idx_path(prefix), mask_path(prefix)) if path.exists()]
        if there and not options.overwrite:
            raise DataError(
                f"{there[0]} exists already\n  fix: choose another name, or allow replacing with --overwrite"
            )
        endings = ("bin", "idx", "mask", "meta.json", "rejects.jsonl", "lock", "bin.tmp", "mask.tmp")
        self.files: InputFiles = list_files(inputs, outputs=[f"{prefix}.{ending}" for ending in endings])

    def run(self, report: Callable[[int, int], None]) -> Meta:
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        dtype = token_dtype(self.tokenizer.vocab_size)
        try:
            with (
                IndexedWriter(self.prefix, dtype, describe=self._describe) as writer,
                open(self.mask_temporary, "wb") as mask,
            ):
                mask.write(pack_header(self.options.row_length, 0, pairs=self.options.pairs))
                for row in self._rows(report):
                    self._write(writer, mask, row)
                if not self.counts.rows:
                    raise self._nothing()
                mask.seek(0)
                mask.write(pack_header(self.options.row_length, self.counts.num_tokens, pairs=self.options.pairs))
                mask.flush()
                os.fsync(mask.fileno())
                self._clear_away()
        except OSError as error:
            raise DataError(f"{self.prefix}: writing stopped ({error.strerror or error}); nothing is left") from error
        finally:
            self.mask_temporary.unlink(missing_ok=True)
            if not idx_path(self.prefix).exists():  # whose mask it would have been
                mask_path(self.prefix).unlink(missing_ok=True)
        self._write_rejects()
        assert writer.meta is not None, "the writer describes what it wrote"
        return writer.meta

    def _rows(self, report: Callable[[int, int], None]) -> Iterator[list[Sample]]:
        """All rows; the last ends with one more token of padding, the label of the row's last token."""
        pad_id = self.tokenizer.eod_id or 0
        packer, waiting = Packer(self.options.row_length, pad_id), None
        for sample in self._samples(report):
            if (row := packer.add(sample)) is not None:
                if waiting is not None:
                    yield waiting
                waiting = row
        for row in packer.rest():
            if waiting is not None:
                yield waiting
            waiting = row
        if waiting is not None:
            yield [*waiting[:-1], padded(waiting[-1], 1, pad_id)]

    def _samples(self, report: Callable[[int, int], None]) -> Iterator[Sample]:
        before, total = 0, sum(path.stat().st_size for path in self.files.read)
        for path in self.files.read:
            for record in read_records(path):
                self.counts.read += 1
                try:
                    if record.reason:
                        raise Unusable(record.reason)
                    yield self.make(record.value)
                except Unusable as unusable:
                    self._reject(record, unusable)
                if self.counts.read % 256 == 0:
                    report(min(before + record.done, total), total)
            before += path.stat().st_size
            report(before, total)

    def _reject(self, record: Record, unusable: Unusable) -> None:
        if self.options.strict:
            detail = f": {unusable.detail}" if unusable.detail else ""
            raise DataError(
                f"{record.path}, line {record.line}: {REASONS[unusable.reason]} ({unusable.reason}){detail}\n"
                "  fix: fix the line, or run without --strict to have such conversations counted and left out"
            )
        if self.counts.rejected.total() < KEPT_REJECTS:
            kept = {"file": record.path, "line": record.line, "reason": unusable.reason}
            kept |= {"detail": unusable.detail, "begins": record.begins}
            self.counts.rejects.append(json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.counts.rejected[unusable.reason] += 1

    def _write(self, writer: IndexedWriter, mask: BinaryIO, row: list[Sample]) -> None:
        counts, flags = self.counts, np.concatenate([sample.mask for sample in row])
        writer.add_documents(
            np.concatenate([sample.tokens for sample in row]),
            np.array([length for sample in row for length in sample.lengths]),
        )
        mask.write(flags.tobytes())
        counts.by_mask += np.bincount(flags, minlength=4)
        counts.rows += 1
        counts.num_tokens += len(flags)
        counts.written += len(row)
        counts.cut_samples += sum(sample.cut > 0 for sample in row)
        counts.cut_tokens += sum(sample.cut for sample in row)

    def _clear_away(self) -> None:
        """What stands under the names now is about to be replaced; the index first, without which there is no pair."""
        for path in (idx_path(self.prefix), meta_path(self.prefix), mask_path(self.prefix), self.rejects_path):
            path.unlink(missing_ok=True)

    def _describe(self, index: Path) -> Meta:
        """Called when the tokens have their name and the index not yet: the mask gets its own."""
        os.replace(self.mask_temporary, mask_path(self.prefix))
        counts, options = self.counts, self.options
        text = self.template.text.encode()
        record = MaskRecord(
            row_length=options.row_length,
            rows=counts.rows,
            answer_tokens=int(counts.by_mask[ANSWER]),
            padding_tokens=int(counts.by_mask[PADDING]),
            blocks=hash_blocks(mask_path(self.prefix)),
            template=self.template.name,
            template_sha256=hashlib.sha256(text).hexdigest(),
            cut_samples=counts.cut_samples,
            cut_tokens=counts.cut_tokens,
            rejected_tokens=int(counts.by_mask[REJECTED]),
        )
        meta = describe(
            self.prefix,
            self.tokenizer,
            append_eod=False,
            documents=DocumentCounts(counts.read, counts.written, rejected=counts.rejected.total()),
            rejected=dict(counts.rejected),
            sources=tuple(_file_record(path) for path in self.files.read),
            files=self.files.counts,
            index=index,
        )
        return replace(meta, mask=record, format_version=MASKED_VERSION)

    def _write_rejects(self) -> None:
        if self.counts.rejects:
            write_bytes(self.rejects_path, b"".join(self.counts.rejects))

    def _nothing(self) -> DataError:
        self._write_rejects()
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.rejected.most_common())
        fix = f"look at {self.rejects_path}" if reasons else "give files that hold conversations"
        if self.counts.rejected.most_common(1) and self.counts.rejected.most_common(1)[0][0] == "too_long":
            fix += "; give --seq-length a larger number, or --too-long cut"
        if (
            not self.options.pairs
            and self.counts.rejected["no_conversation"]
            and any(b"chosen" in line for line in self.counts.rejects)
        ):
            fix += "; pairs of a chosen and a rejected answer need --pairs"
        return DataError(
            f"{self.prefix}: of {self.counts.read:,} conversations none can be used ({reasons})\n  fix: {fix}"
        )


def _file_record(path: Path) -> FileRecord:
    return FileRecord(str(path), path.stat().st_size, hash_blocks(path, BLOCK_BYTES))
