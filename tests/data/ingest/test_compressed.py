"""Compressed files: whole ones of every kind are read, all others stop the job by name."""

import bz2
import gzip
import json
import lzma

import pytest

from megatron_sky.data.ingest.compressed import compression_of, open_compressed
from megatron_sky.errors import DataError

LINES = b"".join(json.dumps({"text": f"{number} {number * 7919 % 1009:x}"}).encode() + b"\n" for number in range(2000))
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def pack(compression, data):
    if compression == ".zst":
        zstandard = pytest.importorskip("zstandard")
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return PACK[compression](data)


@pytest.fixture(params=[".gz", ".bz2", ".xz", ".zst"])
def packed(request, tmp_path):
    """From bytes of a file to what is read of it, for each compression; `packed.pack` packs."""

    def read(data):
        (tmp_path / "a").write_bytes(data)
        with open_compressed(tmp_path / "a", request.param) as file:
            return file.read()

    read.compression = request.param
    read.pack = lambda data: pack(request.param, data)
    return read


def test_streams_of_any_number_and_size_are_one_text(packed):
    parts = [LINES[:1], b"", LINES[1:90], *(LINES[at : at + 7] for at in range(90, 1001, 7)), LINES[1007:]]
    streams = [packed.pack(part) for part in parts]
    assert packed(b"".join(streams)) == LINES
    assert packed((b"\0" * 4).join(streams) + b"\0" * 512) == LINES  # as tar and tapes fill up
    assert packed(packed.pack(b"")) == b""
    assert all(compression_of(stream) == packed.compression for stream in streams) and not compression_of(LINES)


def test_a_file_cut_anywhere_but_between_streams_is_told(packed):
    first, second = packed.pack(LINES[:20_000]), packed.pack(LINES[20_000:])
    whole = first + second
    for size in (1, 3, 9, len(first) - 1, len(first) + 1, len(first) + 4, len(whole) - 1, *range(100, len(whole), 997)):
        with pytest.raises(DataError, match=rf"broken \{packed.compression} file .*the file ends before"):
            packed(whole[:size])
    assert packed(first) == LINES[:20_000]


@pytest.mark.parametrize("at", [0, 3, 9, 500])
def test_damage_is_told_in_the_first_stream_and_in_the_second(packed, at):
    for before in (b"", packed.pack(b"one\n")):
        damaged = bytearray(packed.pack(LINES))
        damaged[at : at + 60] = b"\xff" * 60
        with pytest.raises(DataError, match="broken"):
            packed(before + bytes(damaged))


@pytest.mark.parametrize("other", [b"\0" * 100, b"<html>Not found</html>", LINES])
def test_what_is_no_such_file_is_told_alone_and_after_a_stream(packed, other):
    with pytest.raises(DataError, match="broken"):
        packed(other)
    if other.strip(b"\0"):
        with pytest.raises(DataError, match="broken"):
            packed(packed.pack(LINES) + other)


@pytest.mark.parametrize("window", [27, 28, 31])
def test_zstd_windows_of_any_size_are_read(tmp_path, window):
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters(window_log=window, enable_ldm=True, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # as `zstd --long` of a pipe
    (tmp_path / "a.zst").write_bytes(stream.compress(LINES) + stream.flush())
    with open_compressed(tmp_path / "a.zst", ".zst") as file:
        assert file.read() == LINES


def test_zstd_frames_that_are_passed_over_hold_nothing(tmp_path):
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    frames = [pack(".zst", LINES[:500]), pack(".zst", LINES[500:])]
    (tmp_path / "a.zst").write_bytes(skipped + skipped.join(frames) + skipped)
    with open_compressed(tmp_path / "a.zst", ".zst") as file:
        assert file.read() == LINES
    assert compression_of(skipped) == ".zst"
    (tmp_path / "a.zst").write_bytes(frames[0] + skipped[:-1])
    with pytest.raises(DataError, match="the file ends before"), open_compressed(tmp_path / "a.zst", ".zst") as file:
        file.read()


def test_too_little_memory_is_not_called_damage(packed, monkeypatch):
    class Greedy:
        def decompress(self, data):
            raise MemoryError

    monkeypatch.setattr("megatron_sky.data.ingest.compressed._format", lambda path, compression: (Greedy, (OSError,)))
    with pytest.raises(DataError, match=r"too little memory to unpack it(.|\n)*fix: take a machine with more"):
        packed(packed.pack(LINES))
