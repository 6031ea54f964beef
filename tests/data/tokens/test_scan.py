"""One pass over a pair's tokens: hashes, counts and the largest id, whatever the size of a block."""

from itertools import pairwise

import numpy as np
import pytest
import xxhash

from megatron_sky.data.tokens import scan
from megatron_sky.data.tokens.indexed import bin_path
from megatron_sky.data.tokens.meta import DocumentCounts, TokenizerRecord, entropy
from megatron_sky.data.tokens.scan import TokenTally, describe, scan_blocks, scan_tokens
from tests.data.helpers import write_pair


@pytest.fixture
def tokens(monkeypatch) -> np.ndarray:
    monkeypatch.setattr(scan, "HASH_BLOCK", 64)
    monkeypatch.setattr(scan, "_READ_AT_ONCE", 24)
    monkeypatch.setattr(scan, "_COUNTED_AT_ONCE", 5)
    return np.random.default_rng(0).integers(0, 100, 333)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_blocks_are_the_file(dtype, threads, tokens, tmp_path):
    path = bin_path(write_pair(tmp_path / "p", [tokens.tolist()], dtype))
    parts, content = [], path.read_bytes()
    places = lambda start, stop: np.arange(-(-start // 7) * 7, stop, 7)  # noqa: E731
    for block in scan_blocks(path, np.dtype(dtype), threads=threads, places=places):
        start = block.first * np.dtype(dtype).itemsize
        assert block.xxh3 == xxhash.xxh3_128_hexdigest(content[start : start + 64])
        of_block = tokens[block.first : block.first + block.length]
        assert block.max_id == of_block.max() and not block.has_negative
        assert block.places.tolist() == [n for n in range(0, 333, 7) if 0 <= n - block.first < block.length]
        assert block.ids.tolist() == tokens[block.places].tolist() and len(block.counts) == 0
        parts.append(of_block)
    assert np.concatenate(parts).tolist() == tokens.tolist()


def test_counts_are_those_of_the_ids(tokens, tmp_path):
    path = bin_path(write_pair(tmp_path / "p", [tokens.tolist()]))
    seen = []
    found = scan_tokens(path, np.dtype(np.uint16), visit=lambda block: seen.append(block.first), count=True)
    assert found.counts.tolist() == np.bincount(tokens).tolist() and found.max_id == tokens.max()
    assert seen == list(range(0, 333, 32)) and len(found.blocks) == len(seen)
    assert scan_tokens(path, np.dtype(np.uint16)).counts.tolist() == []


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_what_is_gathered_while_writing_is_what_reading_finds(dtype, tokens, tmp_path):
    tokens = tokens.astype(dtype)
    path = bin_path(write_pair(tmp_path / "p", [tokens.tolist()], dtype))
    whole, tally = scan_tokens(path, np.dtype(dtype), count=True), TokenTally(100)
    ends = [0, 1, 1, 5, 32, 64, 200, 333]  # within a block, at its end, over several
    for number, (start, end) in enumerate(pairwise(ends)):
        part = tokens[start:end]
        tally.add(part, np.bincount(part, minlength=100) if number % 2 else None)
        if end == 64:
            assert len(tally.scan().blocks) == 64 * np.dtype(dtype).itemsize // 64
    found = tally.scan()
    assert (found.blocks, found.max_id) == (whole.blocks, whole.max_id)
    assert found.counts.tolist() == np.bincount(tokens, minlength=100).tolist()


def test_nothing_gathered_is_an_empty_file():
    assert TokenTally(5).scan().blocks == () and TokenTally(5).scan().max_id == -1


def test_a_negative_id_is_no_large_one(tmp_path):
    path = bin_path(write_pair(tmp_path / "p", [[5, -1, 7]], np.int32))
    (block,) = scan_blocks(path, np.dtype(np.int32))
    assert block.has_negative
    assert scan_tokens(path, np.dtype(np.int32), count=True).counts.tolist() == []


def test_an_empty_file(tmp_path):
    (tmp_path / "e.bin").write_bytes(b"")
    found = scan_tokens(tmp_path / "e.bin", np.dtype(np.uint16), count=True)
    assert found.blocks == () and found.max_id == -1 and len(found.counts) == 0


def test_a_description_is_of_the_pair(tokens, tmp_path):
    prefix = write_pair(tmp_path / "p", [tokens[:100].tolist(), tokens[100:].tolist()])
    record = TokenizerRecord("t", "0" * 64, 100, None)
    meta = describe(prefix, record, append_eod=False, documents=DocumentCounts(read=2, written=2, empty=0))
    assert (meta.num_documents, meta.num_tokens, meta.max_token_id) == (2, 333, tokens.max())
    assert meta.unigram_entropy == pytest.approx(entropy(np.bincount(tokens))) and meta.tokenizer == record
