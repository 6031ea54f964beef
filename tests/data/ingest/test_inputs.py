import gzip
import json

import pytest

from megatron_sky.data.ingest import inputs as inputs_module
from megatron_sky.data.ingest import tokenize as tokenize_module
from megatron_sky.data.ingest.inputs import blocks_of, cut_pieces, find_files
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.indexed import bin_path
from megatron_sky.errors import DataError

LINES = b"".join(json.dumps({"text": f"{number} {number * 7919 % 1009:x}"}).encode() + b"\n" for number in range(2000))


def read(path):
    (piece,) = cut_pieces([path])
    return b"".join(block.lines for block in blocks_of(piece, ("text",)))


def zstd_frames(*parts):
    zstandard = pytest.importorskip("zstandard")
    return [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in parts]


def test_zstd_frames_of_any_number_and_size_are_one_text(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "BLOCK_BYTES", 5000)
    path = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    some = [LINES[:1], b"", LINES[1:90], *(LINES[at : at + 7] for at in range(90, 9001, 7)), LINES[9001:]]
    path.write_bytes(skippable + skippable.join(zstd_frames(*some)) + skippable)
    assert read(path) == LINES


def test_a_zstd_file_cut_anywhere_but_between_frames_is_told(text_corpus, tmp_path):
    first, second = zstd_frames(LINES[:20_000], LINES[20_000:])
    whole, path = first + second, tmp_path / "a.jsonl.zst"
    for size in (1, 3, 9, len(first) - 1, len(first) + 1, len(first) + 4, len(whole) - 1, *range(100, len(whole), 997)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.jsonl\.zst: broken \.zst file .*the file ends before"):
            read(path)
    with pytest.raises(DataError, match=r"broken \.zst file"):
        tokenize_files([path], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    assert not bin_path(tmp_path / "out").exists()
    path.write_bytes(first)
    assert read(path) == LINES[:20_000]


@pytest.mark.parametrize("at", [0, 3, 9, 500])
def test_damage_within_a_compressed_file_is_told(tmp_path, at):
    (packed,) = zstd_frames(LINES)
    for name, data in (("a.jsonl.zst", packed), ("a.jsonl.gz", gzip.compress(LINES))):
        damaged = bytearray(data)
        damaged[at : at + 60] = b"\xff" * 60
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}: broken"):
            read(tmp_path / name)


def test_what_tokenizing_wrote_is_no_input(text_corpus, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINES + b"bad\n")
    (tmp_path / "b.meta.json").write_bytes(LINES)  # a user's own, whatever its name
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.meta.json"]
    options = TokenizeOptions(fast=False)
    tokenize_files(inputs, tmp_path / "out", text_corpus.tokenizer, options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenize_module, "describe", raises(KeyboardInterrupt))
        tokenize_files(inputs, tmp_path / "stopped", text_corpus.tokenizer, options)
    ours = [tmp_path / name for name in ("out.meta.json", "out.rejects.jsonl", "stopped.progress.json")]
    assert all(path.exists() for path in ours)
    assert (
        find_files([tmp_path])
        == find_files([f"{tmp_path}/*.jsonl", f"{tmp_path}/*.json"])
        == find_files(inputs)
        == inputs
    )
    for path in ours:
        with pytest.raises(DataError, match="names no file"):
            find_files([path])
    (before,) = tokenize_files([tmp_path], tmp_path / "out", text_corpus.tokenizer, options)
    assert before.documents.read == 4001


def raises(error):
    def call(*arguments, **more):
        raise error

    return call


def test_a_product_that_is_gone_since_the_folder_was_listed_is_no_input(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module.Path, "is_file", lambda path: True)
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.progress.json").symlink_to(tmp_path / "gone")
    assert find_files([tmp_path]) == [tmp_path / "a.jsonl"]
