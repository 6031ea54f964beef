"""Blocks of compressed files and of tables."""

import dataclasses
import gzip
import json

import pytest

from megatron_sky.data.ingest import inputs as inputs_module
from megatron_sky.data.ingest.documents import parse_block
from megatron_sky.data.ingest.inputs import blocks_of, cut_pieces
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.indexed import bin_path
from megatron_sky.errors import DataError

LINES = b"".join(json.dumps({"text": f"{number} {number * 7919 % 1009:x}"}).encode() + b"\n" for number in range(2000))


def test_blocks_of_a_compressed_file_are_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "BLOCK_BYTES", 5000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES[:1]) + gzip.compress(LINES[1:]))
    (piece,) = cut_pieces([path])
    blocks = [block.lines for block in blocks_of(piece, ("text",))]
    assert b"".join(blocks) == LINES and len(blocks) > 5 and all(block.endswith(b"\n") for block in blocks)


def test_a_broken_file_leaves_no_pair(text_corpus, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES)[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: broken \.gz file"):
        tokenize_files([path], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    assert not bin_path(tmp_path / "out").exists()


# A row each: a text, no UTF-8, a text again, no value, a byte order mark, a NUL, an empty text.
VALUES = [b"ok", b"bad\xff", "\u6587".encode(), None, b"\xef\xbb\xbfmark", b"nul\0x", b""]
TEXTS = ["ok", "\u6587", "\ufeffmark", ""]
REASONS = [(1, "invalid_utf8"), (3, "not_text"), (5, "nul")]


def columns():
    pyarrow = pytest.importorskip("pyarrow")

    def strings(kind, binary, values=VALUES):
        raw = pyarrow.array(values, binary)
        return pyarrow.Array.from_buffers(kind, len(raw), raw.buffers())

    plain = strings(pyarrow.string(), pyarrow.binary())
    places = pyarrow.array([0, 1, 2, None, 3, 4, 5], pyarrow.int32())
    words = strings(pyarrow.string(), pyarrow.binary(), [value for value in VALUES if value is not None])
    return {
        "string": plain,
        "large string": strings(pyarrow.large_string(), pyarrow.large_binary()),
        "binary": pyarrow.array(VALUES, pyarrow.binary()),
        "large binary": pyarrow.array(VALUES, pyarrow.large_binary()),
        "dictionary": pyarrow.DictionaryArray.from_arrays(places, words),
        "list": pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2, 3, 4, 5, 6, 7], pyarrow.int32()), plain),
    }


@pytest.mark.parametrize("kind", ["string", "large string", "binary", "large binary", "dictionary", "list"])
def test_a_bad_row_of_a_table_is_counted_alone(text_corpus, tmp_path, kind):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": columns()[kind]}), tmp_path / "a.parquet")
    (piece,) = cut_pieces([tmp_path / "a.parquet"])
    (block,) = blocks_of(piece, ("text",))
    parsed = parse_block(block, ("text",))
    expected = [([text] if kind == "list" else text,) for text in TEXTS]
    assert parsed.documents == expected and parsed.lines == len(VALUES) and not parsed.notes
    assert [(reject.line, reject.reason) for reject in parsed.rejects] == REASONS
    assert "bad" in parsed.rejects[0].excerpt
    (meta,) = tokenize_files([tmp_path / "a.parquet"], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    counts = dataclasses.asdict(meta.documents)
    assert counts == {"read": 7, "written": 3, "empty": 1, "rejected": 3}
    kept = [json.loads(line) for line in (tmp_path / "out.rejects.jsonl").read_text().splitlines()]
    assert [(reject["line"], reject["reason"]) for reject in kept] == [(line + 1, reason) for line, reason in REASONS]


def test_what_is_no_table_or_lacks_its_column_is_told(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": [f"text {n}" for n in range(900)]}), path)
    whole = path.read_bytes()

    def read():
        (piece,) = cut_pieces([path])
        return [row for block in blocks_of(piece, ("body",)) for row in block.rows]

    assert len(read()) == 900
    for content in (whole[:4], whole[:50], whole[: len(whole) // 2], whole[:-1], b"PAR1" * 9):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet: broken Parquet file"):
            read()
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match=r"has no column 'body'\n  fix: name one of text"):
        read()
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["body", "body"])
    parquet.write_table(twice, path)
    with pytest.raises(DataError, match="has more than one column 'body'"):
        read()


@pytest.mark.parametrize("ending", ["txt", "txt.gz", "TXT.GZ"])
def test_a_text_file_is_held_to_the_rules_of_lines(text_corpus, tmp_path, ending):
    contents = [b"\xef\xbb\xbfone", b"bad\xff", b"nul\0", b"x" * 4000, b"two"]
    pack = gzip.compress if ending.lower().endswith("gz") else bytes
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.{ending}").write_bytes(pack(content))
    options = TokenizeOptions(max_document_bytes=3000)
    (meta,) = tokenize_files([f"{tmp_path}/*.{ending}"], tmp_path / "out", text_corpus.tokenizer, options)
    assert meta.rejected == {"invalid_utf8": 1, "nul": 1, "too_long": 1} and meta.documents.written == 2
    assert meta.notes == {"byte_order_marks": 1}


def test_a_file_that_can_no_longer_be_read_is_not_called_a_full_disk(text_corpus, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINES)

    def refuse(piece, keys, max_bytes):
        (tmp_path / "a.jsonl").unlink()
        yield from blocks_of(piece, keys, max_bytes)

    monkeypatch.setattr("megatron_sky.data.ingest.tokenize.blocks_of", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl can't be read: No such file"):
        tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())


def table_blocks(path, key="text"):
    (piece,) = cut_pieces([path])
    return list(blocks_of(piece, (key,)))


@pytest.mark.parametrize("kind", ["text", "list"])
def test_a_value_that_stands_in_many_rows_is_in_memory_once(kind, tmp_path):
    """A file of a kilobyte whose rows would be gigabytes of text."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 256, pyarrow.int32()), ["a" * 18_000_000])
    bounds = pyarrow.array(range(0, 257, 2), pyarrow.int32())
    column = words if kind == "text" else pyarrow.ListArray.from_arrays(bounds, words)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 3000
    blocks = table_blocks(tmp_path / "a.parquet")
    assert sum(len(block.rows) for block in blocks) == len(column)
    assert all(len(block.rows) == 1 for block in blocks)
    values = [row[0] if kind == "text" else row[0][1] for block in blocks for row in block.rows]
    assert len({id(value) for value in values}) == 1 and len(values[0]) == 18_000_000
    rejects = parse_block(blocks[0], ("text",), max_bytes=1_000_000).rejects
    assert [(each.reason, len(each.excerpt) < 1000) for each in rejects] == [("too_long", True)]


def test_a_date_that_python_has_not_is_no_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"text": ["a", "b"], "t": pyarrow.array([10**17, 0], pyarrow.timestamp("ms")), "d": [1, 2]}
    columns["d"] = pyarrow.array([2**31 - 1, 0], pyarrow.date32())
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for key in ("t", "d"):
        parsed = parse_block(table_blocks(tmp_path / "a.parquet", key)[0], (key,))
        assert [each.reason for each in parsed.rejects] == ["not_text", "not_text"]


def test_two_columns_of_one_name_are_told(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="more than one column 'text'"):
        table_blocks(tmp_path / "a.parquet")


def test_a_part_that_is_said_to_unpack_to_too_much_is_refused(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(inputs_module, "_MOST_UNPACKED", 1000)
    monkeypatch.setattr(inputs_module, "_MOST_TIMES", 3)
    parquet.write_table(pyarrow.table({"text": ["a" * 100_000]}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"bytes are said to hold .* in group 0 of its rows"):
        table_blocks(tmp_path / "a.parquet")
