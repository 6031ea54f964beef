"""Texts to `.bin/.idx` pairs and their meta files: bounded memory, all cores, gone on with where it stopped.

Parts of the input's blocks go to worker processes, and their ids come back in order to this one, which writes. Every
few seconds the files are brought to the disk and `<prefix>.progress.json` says how far they reach; an interrupted run
goes on from there. The pair is the one that Megatron-LM's preprocessing writes for the same texts and tokenizer, byte
for byte.

Every document read is written, written as empty, or rejected with a reason; the meta file holds the counts, and
`<prefix>.rejects.jsonl` the first `KEPT_REJECTS` rejections.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from megatron_sky.data.ingest.documents import REASONS, parse_block
from megatron_sky.data.ingest.encode import BlockEncoder, EncodedBlock, EncodeOptions, encode_in_worker, start_worker
from megatron_sky.data.ingest.input_files import InputFiles, list_files
from megatron_sky.data.ingest.inputs import BLOCK_BYTES, Block, blocks_of, cut_pieces, pieces_of_shard
from megatron_sky.data.ingest.progress import Progress
from megatron_sky.data.ingest.sentences import learn_punkt
from megatron_sky.data.ingest.workers import make_pool
from megatron_sky.data.tokens.indexed import bin_path, idx_path, token_dtype
from megatron_sky.data.tokens.meta import (
    DocumentCounts,
    FileRecord,
    Meta,
    ShardRecord,
    hash_blocks,
    meta_path,
    read_meta,
)
from megatron_sky.data.tokens.scan import LARGEST_COUNTED_ID, TokenTally, describe
from megatron_sky.data.tokens.writer import PARTS, IndexedWriter, WriterState, finish_pair
from megatron_sky.distributed.helpers import shared_memory_named
from megatron_sky.errors import DataError
from megatron_sky.files import remove_leftovers
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, Tokenizer, gigatoken_for, load_tokenizer

KEPT_REJECTS = 1000
_SAVE_SECONDS = 5.0


@dataclass(frozen=True)
class TokenizeOptions(EncodeOptions):
    """What to make of the input, and how.

    Attributes:
        workers: worker processes; 0: encode in this process.
        shard: (index from 0, count): this part of the input.
        strict: stop at the first document that is rejected.
        overwrite: replace files that are there already.
        names: path prefix of each key's pair; None: the prefix for one key, `<prefix>_<key>` for several.
    """

    workers: int = 0
    shard: tuple[int, int] | None = None
    strict: bool = False
    overwrite: bool = False
    names: tuple[str, ...] | None = None


def tokenize_jsonl(
    inputs: Iterable[str | Path],
    prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    key: str = "text",
    append_eod: bool = True,
) -> Meta:
    """Write the texts of JSONL files to `<prefix>.bin/.idx/.meta.json`, in this process, replacing what is there.

    Raises:
        DataError: an input is missing or holds a line without a text under `key`.
    """
    options = TokenizeOptions(keys=(key,), append_eod=append_eod, strict=True, overwrite=True)
    return tokenize_files(list(inputs), prefix, tokenizer, options)[0]


def tokenize_files(
    inputs: Sequence[str | Path],
    prefix: str | Path,
    tokenizer: Tokenizer | str | Path,
    options: TokenizeOptions,
    *,
    report: Callable[[int, int], None] | None = None,
) -> list[Meta]:
    """Tokenize files, folders and globs; returns the meta file of each key's pair.

    Args:
        tokenizer: a path where worker processes are asked for, as each loads it.
        report: called with (bytes done, bytes in all) now and then.

    Raises:
        DataError: nothing to read, files in the way, a rejected document where `options.strict`, no room on the disk.
            What was done so far is kept for the next run; until all is encoded no pair is there under its name.
    """
    prefix = str(prefix)
    if options.fast:
        gigatoken_for("the fast encoder")  # each worker would only repeat that it is missing
    names = options.names or _default_names(prefix, options.keys)
    files = list_files(inputs, outputs=_outputs(prefix, names))
    job = _Job(prefix, names, tokenizer, options, files)
    if (done := job.finished()) is not None:
        return done
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    try:
        return job.run(report or (lambda done, total: None))
    except OSError as error:
        raise DataError(
            f"{prefix}: writing stopped ({error.strerror or error}); what was done is kept\n"
            "  fix: make room or fix the disk, then give the same command again to go on"
        ) from error


class _Job:
    """One call of `tokenize_files`."""

    def __init__(
        self,
        prefix: str,
        names: tuple[str, ...],
        tokenizer: Tokenizer | str | Path,
        options: TokenizeOptions,
        files: InputFiles,
    ):
        self.prefix, self.names, self.options = prefix, names, options
        self.files = files.counts
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
        self.tokenizer_path = None if isinstance(tokenizer, Tokenizer) else str(tokenizer)
        assert not (options.workers and self.tokenizer_path is None), "worker processes need the tokenizer's path"
        pieces = cut_pieces(files.read)
        self.sizes = {piece.path: piece.end for piece in pieces}  # of all files, whichever shard has them
        self.pieces = pieces if options.shard is None else pieces_of_shard(pieces, *options.shard)
        if options.append_eod and self.tokenizer.eod_id is None:
            raise DataError(
                f"tokenizer {self.tokenizer.name} has no end-of-document token\n  fix: run without --append-eod"
            )
        self.progress_path = Path(f"{prefix}.progress.json")
        self.rejects_path = Path(f"{prefix}.rejects.jsonl")
        self.fingerprint = self._fingerprint()
        self._skipped_lines: int | None = None
        self._metas: dict[int, Meta] = {}
        self._tallies: list[TokenTally] = []  # of each pair, where this process writes all of it

    def _fingerprint(self) -> str:
        decides = self._decisive_options()
        files = {piece.path: os.stat(piece.path) for piece in self.pieces}
        decides["files"] = [(path, status.st_size, status.st_mtime_ns) for path, status in files.items()]
        decides["pieces"] = [(piece.path, piece.start, piece.end) for piece in self.pieces]
        if self.options.shard is not None:
            decides["whole"] = self._whole()
        return _hash_of(decides)

    def _whole(self, key: str | None = None) -> str:
        """Hash of what all shards of a job share, of one key's pair; not the files' times, which copying changes."""
        shared = self._decisive_options()
        del shared["shard"], shared["strict"]
        shared["key"] = key
        shared["files"] = list(self.sizes.items())
        shared["piece"] = BLOCK_BYTES
        return _hash_of(shared)

    def _decisive_options(self) -> dict:
        decides = asdict(self.options)
        for name in ("workers", "overwrite", "fast", "names", "parse_special"):
            del decides[name]
        decides["tokenizer"], decides["eod_id"] = self.tokenizer.sha256, self.tokenizer.eod_id
        # Where control tokens were once taken from text; what was written then is another job's.
        if self.options.parse_special or not isinstance(self.tokenizer, SentencePieceTokenizer):
            decides["parse_special"] = self.options.parse_special
        return decides

    def finished(self) -> list[Meta] | None:
        """The meta files of an earlier run of the same job; an error where other files are in the way."""
        progress = self._earlier_progress()
        ours = {name for name in self.names if progress.encoded and not _is_unfinished(name)}  # interrupted since
        metas = [read_meta(name) for name in self.names]
        same = [meta for meta in metas if meta is not None and meta.job == self.fingerprint]
        if len(same) == len(metas) and not ours and not self.options.overwrite:
            return same
        others = [name for name in self.names if name not in ours]
        there = [path(name) for name in others for path in (bin_path, idx_path) if path(name).exists()]
        if there and not self.options.overwrite:
            raise DataError(
                f"{there[0]} exists already\n  fix: choose another name, or allow replacing with --overwrite"
            )
        return None

    def run(self, report: Callable[[int, int], None]) -> list[Meta]:
        progress = self._earlier_progress()
        if progress.encoded:
            self._finish_pairs(progress)
        else:
            self._write_pairs(progress, report)
        if self.options.shard is None and not any(state["num_tokens"] for state in progress.writers):
            raise self._nothing(progress)
        metas = [self._metas.get(number) or self._describe(number, progress) for number in range(len(self.names))]
        for name, meta in zip(self.names, metas, strict=True):
            meta.write(name)
        self._put_rejects_in_place(progress)
        self.progress_path.unlink(missing_ok=True)
        for path in (self.progress_path, *map(meta_path, self.names)):
            remove_leftovers(path)
        return metas

    def _write_pairs(self, progress: Progress, report: Callable[[int, int], None]) -> None:
        states = [WriterState(**state) for state in progress.writers] or [WriterState()] * len(self.names)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    IndexedWriter(name, self._dtype, resume=state, describe=partial(self._describe, number, progress))
                )
                for number, (name, state) in enumerate(zip(self.names, states, strict=True))
            ]
            if not progress.writers:
                self.progress_path.unlink(missing_ok=True)  # of a job whose files these were
                if self.tokenizer.vocab_size <= LARGEST_COUNTED_ID:
                    self._tallies = [TokenTally(self.tokenizer.vocab_size) for _ in writers]
            self._encode_all(progress, writers, report)
            self._remove_metas()
        self._metas = {number: writer.meta for number, writer in enumerate(writers) if writer.meta is not None}

    def _finish_pairs(self, progress: Progress) -> None:
        """Put in place what an encoded job left, each pair from wherever it had come to."""
        self._remove_metas()
        for number, (name, state) in enumerate(zip(self.names, progress.writers, strict=True)):
            describe = partial(self._describe, number, progress)
            if meta := finish_pair(name, self._dtype, WriterState(**state), describe):
                self._metas[number] = meta

    def _nothing(self, progress: Progress) -> DataError:
        """No document had a token: the pairs are taken away again, what was rejected stays to be looked at."""
        for name in self.names:
            bin_path(name).unlink(missing_ok=True)
            idx_path(name).unlink(missing_ok=True)
            meta_path(name).unlink(missing_ok=True)
        self._put_rejects_in_place(progress)
        self.progress_path.unlink(missing_ok=True)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in progress.rejected.items())
        fixes = [f"look at {self.rejects_path}"] if reasons else ["give files that hold text"]
        if "no_key" in progress.rejected:
            fixes.append(f"give --key the name of what holds the text (now: {', '.join(self.options.keys)})")
        return DataError(
            f"{self.prefix}: of {progress.read:,} documents none has text" + (f" ({reasons})" if reasons else "") + "\n"
            f"  fix: {'; '.join(fixes)}"
        )

    def _remove_metas(self) -> None:
        """What stands under the names now is about to be replaced."""
        for name in self.names:
            meta_path(name).unlink(missing_ok=True)

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(token_dtype(self.tokenizer.vocab_size))

    def _earlier_progress(self) -> Progress:
        saved = Progress.load(self.progress_path, self.fingerprint)
        fresh = Progress(self.fingerprint, empty=[0] * len(self.names))
        if saved is None:
            return fresh
        there = all(_is_unfinished(name) or (saved.encoded and bin_path(name).exists()) for name in self.names)
        return saved if there else fresh

    def _encode_all(self, progress: Progress, writers: list[IndexedWriter], report: Callable[[int, int], None]) -> None:
        total = sum(piece.end - piece.start for piece in self.pieces)
        saved = time.monotonic()
        with open(f"{self.rejects_path}.tmp", "ab") as rejects:
            rejects.truncate(progress.rejects_size)
            for done, block, encoded in self._encoded_blocks(progress.blocks):
                self._take(progress, writers, rejects, block, encoded)
                if not block.ends_block:
                    continue
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._save(progress, writers, rejects)
                    saved = time.monotonic()
                report(done, total)
            progress.encoded = True
            self._save(progress, writers, rejects)

    def _blocks(self, skip: int) -> Iterator[tuple[int, Block]]:
        """The parts of all blocks after the first `skip`, each with the input bytes done once its block is written."""
        number, done = 0, 0
        for piece in self.pieces:
            done += piece.end - piece.start
            for block in blocks_of(piece, self.options.keys, self.options.max_document_bytes):
                if number >= skip:
                    yield from ((done, part) for part in block.parts())
                number += 1

    def _encoded_blocks(self, skip: int) -> Iterator[tuple[int, Block, EncodedBlock]]:
        punkt = learn_punkt(self._texts()) if self.options.split_sentences else None
        if self.options.workers == 0:
            encode = BlockEncoder(self.tokenizer, self.options, punkt)
            for done, block in self._blocks(skip):
                yield done, block, encode(block)
            return
        assert self.tokenizer_path is not None
        with shared_memory_named():
            pool = make_pool(self.options.workers, start_worker, (self.tokenizer_path, self.options, punkt))
        waiting: deque[tuple[int, Block, Future[EncodedBlock]]] = deque()
        try:
            for done, block in self._blocks(skip):
                waiting.append((done, block, pool.submit(encode_in_worker, block)))
                if len(waiting) > 2 * self.options.workers + 1:
                    yield _wait(*waiting.popleft())
            while waiting:
                yield _wait(*waiting.popleft())
        except BrokenProcessPool as error:
            raise DataError(
                f"{self.prefix}: a worker process was killed (often for lack of memory); what was done is kept\n"
                "  fix: give the same command again to go on, with fewer --workers if memory is short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _texts(self) -> Iterator[str]:
        for _, block in self._blocks(0):
            for document in parse_block(block, self.options.keys, self.options.max_document_bytes).documents:
                yield from (text for text in document if isinstance(text, str))

    def _take(
        self, progress: Progress, writers: list[IndexedWriter], rejects, block: Block, encoded: EncodedBlock
    ) -> None:
        progress.begin(block)
        self._take_rejects(progress, rejects, block, encoded)
        for number, (writer, texts) in enumerate(zip(writers, encoded.texts, strict=True)):
            tokens = np.frombuffer(texts.tokens, writer.dtype)
            writer.add_documents(tokens, texts.lengths, texts.sequences)
            if self._tallies:
                self._tallies[number].add(tokens, texts.counts)
        progress.add(block, encoded)

    def _take_rejects(self, progress: Progress, rejects, block: Block, encoded: EncodedBlock) -> None:
        kept = sum(progress.rejected.values())
        for reject in encoded.rejects:
            line = self._lines_before_job(block.path) + progress.lines + reject.line + 1
            if self.options.strict:
                raise DataError(
                    f"{block.path}, line {line}: {REASONS[reject.reason]} ({reject.reason}): {reject.excerpt[:80]!r}\n"
                    "  fix: fix the line, or run without --strict to have such documents counted and left out"
                )
            if kept < KEPT_REJECTS:
                record = {"file": block.path, "line": line, "reason": reject.reason, "begins": reject.excerpt}
                rejects.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            kept += 1
            progress.rejected[reject.reason] = progress.rejected.get(reject.reason, 0) + 1

    def _save(self, progress: Progress, writers: list[IndexedWriter], rejects) -> None:
        rejects.flush()
        progress.rejects_size = rejects.tell()
        progress.writers = [asdict(writer.save_state()) for writer in writers]
        progress.save(self.progress_path)

    def _put_rejects_in_place(self, progress: Progress) -> None:
        temporary = Path(f"{self.rejects_path}.tmp")
        if progress.rejected and temporary.exists():  # else an earlier run of this job has put them there
            os.replace(temporary, self.rejects_path)
        elif not progress.rejected:
            temporary.unlink(missing_ok=True)
            self.rejects_path.unlink(missing_ok=True)

    def _describe(self, number: int, progress: Progress, index: Path | None = None) -> Meta:
        """The meta file of the `number`-th pair, whose index may still have another name."""
        name, key, empty = self.names[number], self.options.keys[number], progress.empty[number]
        rejected = sum(progress.rejected.values())
        return describe(
            name,
            self.tokenizer,
            append_eod=self.options.append_eod,
            documents=DocumentCounts(
                read=progress.read,
                written=progress.read - empty - rejected,
                empty=empty,
                rejected=rejected,
            ),
            rejected=progress.rejected,
            notes=progress.notes | ({"blank_lines": progress.blank} if progress.blank else {}),
            sources=tuple(self._source(path, progress) for path in dict.fromkeys(piece.path for piece in self.pieces)),
            job=self.fingerprint,
            shard=self.options.shard and ShardRecord(*self.options.shard, self._whole(key)),
            files=self.files,
            index=index,
            scan=self._tallies[number].scan() if self._tallies else None,
        )

    def _source(self, path: str, progress: Progress) -> FileRecord:
        """The file and its hashes; what was read in one stream is hashed now."""
        hashes = progress.hashes.get(path) or hash_blocks(Path(path), BLOCK_BYTES)
        return FileRecord(path, os.path.getsize(path), tuple(hashes))

    def _lines_before_job(self, path: str) -> int:
        """Lines of the file that other shards have; counted only where a line number has to be told."""
        first = self.pieces[0]
        if path != first.path or first.start == 0:
            return 0
        if self._skipped_lines is None:
            self._skipped_lines = _lines_before(path, first.start)
        return self._skipped_lines


def _default_names(prefix: str, keys: Sequence[str]) -> tuple[str, ...]:
    return (prefix,) if len(keys) == 1 else tuple(f"{prefix}_{key}" for key in keys)


def _outputs(prefix: str, names: Sequence[str]) -> list[str]:
    """Files that the job itself writes and goes on from."""
    endings = (".bin", ".idx", ".lock", ".meta.json", ".meta.json.tmp", *(f".{part}.tmp" for part in PARTS))
    pairs = [f"{name}{ending}" for name in names for ending in endings]
    kept = (".progress.json", ".progress.json.tmp", ".rejects.jsonl", ".rejects.jsonl.tmp")
    return [*pairs, *(f"{prefix}{ending}" for ending in kept)]


def _hash_of(decides: dict) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def _is_unfinished(name: str) -> bool:
    return Path(f"{name}.bin.tmp").exists()


def _wait(done: int, block: Block, future: Future[EncodedBlock]) -> tuple[int, Block, EncodedBlock]:
    return done, block, future.result()


def _lines_before(path: str, start: int) -> int:
    """Lines of a file that begin before byte `start`, which is above 0."""
    count, left = 1, start - 1  # a line begins at byte 0, and after every newline but one at the byte before `start`
    with open(path, "rb") as file:
        while left > 0 and (piece := file.read(min(left, 4 << 20))):
            count += piece.count(b"\n")
            left -= len(piece)
    return count
