"""Every file under an input is read, or passed over with a reason that is counted and named."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import socket
from contextlib import suppress

import pytest

from megatron_sky.data.ingest import tokenize as tokenize_module
from megatron_sky.data.ingest.input_files import KINDS, REASONS, describe_files, find_files, list_files
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.meta import read_meta
from megatron_sky.errors import DataError

LINE = b'{"text": "a"}\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def put(path, content=LINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder, files):
    return [str(path.relative_to(folder)) for path in files.read]


def reasons(folder, files):
    return {os.path.relpath(other.path, folder): other.reason for other in files.passed_over}


def table(texts):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), buffer)
    return buffer.getvalue()


def test_known_endings_in_any_case_with_any_compression_are_read(folder):
    packs = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".GZ": gzip.compress}
    for kind in KINDS:
        for ending, pack in packs.items():
            if KINDS[kind] != "rows":
                put(folder / f"a{kind.upper() if ending == '.bz2' else kind}{ending}", pack(LINE))
    put(folder / "B.PARQUET", table(["x"]))
    files = list_files([folder])
    assert len(files.read) == 5 * sum(kind != "rows" for kind in KINDS.values()) + 1
    assert not files.passed_over and files.counts.found == files.counts.read == len(files.read)


def test_files_without_an_ending_are_judged_by_what_they_hold(folder):
    held = {
        "part-00000": LINE,
        "part-00001": b"\xef\xbb\xbf\n " + LINE,
        "part-00002": gzip.compress(LINE),
        "part-00003.gz": gzip.compress(LINE),
        "part-00004": lzma.compress(LINE),
        "part-00005.bz2": bz2.compress(LINE),
        "part-00006": b'{"text": "' + b"x" * 200_000 + b'"}',
        "corpus.jsonl.07": LINE,
        "part-00008": table(["x"]),
    }
    other = {
        "LICENSE": b"Free to use\n",
        "pretty": b'{\n "a": 1\n}\n',
        "list": b'["a"]\n',
        "_SUCCESS": b"",
        "_metadata": table(["x"]),
        "nothing": b"",
        "notes.gz": gzip.compress(b"text"),
        "image": b"\x89PNG\r\n",
    }
    for name, content in (held | other).items():
        put(folder / name, content)
    files = list_files([folder])
    assert names(folder, files) == sorted(held) and reasons(folder, files) == dict.fromkeys(other, "unknown_kind")
    for name in ("LICENSE", "nothing", "_SUCCESS"):
        with pytest.raises(DataError, match=rf"{name}: unknown kind of file"):
            list_files([folder / name])


def test_what_is_no_input_is_passed_over_by_name(folder):
    for name in ("a.jsonl", ".b.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".git/x/y.txt"):
        put(folder / name)
    for name in ("README.md", "t.csv", "a.jsonl.tmp", "a.jsonl~", "x.tar.gz", "x.parquet.gz", "sub/a.bin"):
        put(folder / name)
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "gone.jsonl").symlink_to("nowhere.jsonl")
    (folder / "one.jsonl").symlink_to("two.jsonl")
    (folder / "two.jsonl").symlink_to("one.jsonl")
    with socket.socket(socket.AF_UNIX) as end:
        with suppress(OSError):  # a path that is too long for one
            end.bind(str(folder / "s"))
        files = list_files([folder])
    by_reason = {}
    for path, reason in reasons(folder, files).items():
        by_reason.setdefault(reason, []).append(path)
    assert names(folder, files) == ["a.jsonl"]
    assert by_reason["hidden"] == sorted(
        [".b.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".git/x/y.txt"]
    )
    assert len(by_reason["unknown_kind"]) == 7 and by_reason["broken_link"] == ["gone.jsonl", "one.jsonl", "two.jsonl"]
    assert by_reason["not_a_file"][0] == "pipe.jsonl"
    assert files.counts.found == files.counts.read + sum(files.counts.passed_over.values())
    for path in (folder / "pipe.jsonl", folder / "gone.jsonl", f"{folder}/*.csv", f"{folder}/none*"):
        with pytest.raises(DataError, match="names no file to read"):
            list_files([path])
    assert names(folder, list_files([folder / ".b.jsonl", folder])) == [".b.jsonl", "a.jsonl"]  # named all the same


def test_linked_folders_are_gone_through_once(folder, tmp_path):
    put(folder / "a.jsonl")
    put(tmp_path / "elsewhere" / "b.jsonl")
    put(tmp_path / "elsewhere" / "deep" / "c.jsonl")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "again").symlink_to("../elsewhere/deep")
    (tmp_path / "elsewhere" / "back").symlink_to("../in")
    (folder / "self").symlink_to(".")
    files = list_files([folder])
    assert names(folder, files) == ["a.jsonl", "again/c.jsonl", "linked/b.jsonl"]
    assert reasons(folder, files) == {
        "linked/back": "same_folder",
        "linked/deep": "same_folder",
        "self": "same_folder",
    }
    assert names(folder, list_files([f"{folder}/**/*.jsonl"])) == names(folder, files)
    both = list_files([folder, tmp_path / "elsewhere"])
    assert both.read == files.read and reasons(folder, both)["../elsewhere/b.jsonl"] == "same_file"


def test_a_file_is_read_once_whatever_its_names(folder, tmp_path):
    put(folder / "a.jsonl")
    put(tmp_path / "kept" / "c.jsonl")
    os.link(folder / "a.jsonl", folder / "b.jsonl")
    (folder / "c.jsonl").symlink_to(tmp_path / "kept" / "c.jsonl")
    (folder / "d.jsonl").symlink_to("c.jsonl")
    files = list_files([folder])
    assert names(folder, files) == ["a.jsonl", "c.jsonl"]
    assert reasons(folder, files) == {"b.jsonl": "same_file", "d.jsonl": "same_file"}
    inputs = [folder / "a.jsonl", folder, f"{folder}/*.jsonl", f"{folder}/**", f"{folder}/../in/a.jsonl"]
    assert list_files(inputs) == files  # a name that comes again is no other file


def test_globs_take_folders_and_nested_ones_what_they_say(folder, tmp_path):
    for name in ("a.jsonl", "x/b.jsonl", "x/c.txt", "x/y/d.jsonl", "x/y/.e.jsonl", "z/f.jsonl"):
        put(folder / name)
    assert names(folder, list_files([f"{folder}/*"])) == ["a.jsonl", "x/b.jsonl", "x/c.txt", "x/y/d.jsonl", "z/f.jsonl"]
    files = list_files([f"{folder}/**/*.jsonl"])
    assert names(folder, files) == ["a.jsonl", "x/b.jsonl", "x/y/d.jsonl", "z/f.jsonl"]
    assert reasons(folder, files) == {"x/y/.e.jsonl": "hidden"}
    assert names(folder, list_files([f"{folder}/**/y"])) == ["x/y/d.jsonl"]
    assert names(folder, list_files([f"{folder}/x/**/d.*", f"{folder}/**/*.txt"])) == ["x/y/d.jsonl", "x/c.txt"]
    put(folder / "we[1]rd.jsonl")
    assert names(folder, list_files([folder / "we[1]rd.jsonl"])) == ["we[1]rd.jsonl"]


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.JSONL.ZST", "b.txt.bz2", "part-1.xz", "b.parquet", "b.pq"])
def test_an_empty_file_of_a_kind_that_never_is_stops_the_job(folder, name):
    put(folder / "a.jsonl")
    put(folder / "c.jsonl", b"")  # which may be
    put(folder / name, b"")
    with pytest.raises(DataError, match=rf"0 bytes, as an interrupted download.*{re.escape(name)}\n  fix: fetch"):
        list_files([folder])
    (folder / name).unlink()
    assert names(folder, list_files([folder])) == ["a.jsonl", "c.jsonl"]


def test_what_may_not_be_read_stops_the_job(folder, monkeypatch):
    for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl"):
        put(folder / name)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"may not be read: .*b\.jsonl\n"):
        patch.setattr(os, "access", lambda path, mode: not str(path).endswith("b.jsonl"))
        list_files([folder])
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"in/sub can't be listed: Permission denied"):
        list_files([folder])


def test_what_tokenizing_wrote_is_no_input(text_corpus, tmp_path, monkeypatch):
    put(tmp_path / "a.jsonl", LINE * 2000 + b"bad\n")
    put(tmp_path / "b.meta.json", LINE * 2000)  # a user's own, whatever its name
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.meta.json"]
    options = TokenizeOptions(fast=False)
    tokenize_files(inputs, tmp_path / "out", text_corpus.tokenizer, options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenize_module, "describe", raises(KeyboardInterrupt))
        tokenize_files(inputs, tmp_path / "stopped", text_corpus.tokenizer, options)
    ours = [tmp_path / name for name in ("out.meta.json", "out.rejects.jsonl", "stopped.progress.json")]
    assert all(path.exists() for path in ours)
    for given in ([tmp_path], [f"{tmp_path}/*.jsonl", f"{tmp_path}/*.json"], inputs):
        assert find_files(given) == inputs
    for path in ours:
        with pytest.raises(DataError, match=r"names no file(.|\n)*this program wrote it"):
            find_files([path])
    (before,) = tokenize_files([tmp_path], tmp_path / "out", text_corpus.tokenizer, options)
    assert before.documents.read == 4001
    # The job's own files are not of its input.
    (again,) = tokenize_files([tmp_path], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions(overwrite=True))
    others = {os.path.basename(file.path): file.reason for file in again.files.passed_over_files}
    assert others["stopped.progress.json"] == "written_by_tokenize" and not any(
        name.startswith("out.") for name in others
    )


def raises(error):
    def call(*arguments, **more):
        raise error

    return call


def test_a_file_that_is_gone_since_its_folder_was_listed_is_no_input(folder, monkeypatch):
    put(folder / "a.jsonl")
    put(folder / "b.progress.json")
    real = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: not str(path).endswith("b.progress.json") and real(path))
    files = list_files([folder])
    assert names(folder, files) == ["a.jsonl"] and not files.passed_over


def test_the_account_stands_in_the_meta_file_and_is_printed(text_corpus, folder, tmp_path):
    put(folder / "a.jsonl")
    for number in range(30):
        put(folder / f"{number:02}.csv")
    put(folder / ".hidden.jsonl")
    tokenize_files([folder], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    counts = read_meta(tmp_path / "out").files
    assert (counts.found, counts.read, counts.passed_over) == (32, 1, {"hidden": 1, "unknown_kind": 30})
    assert len(counts.passed_over_files) == 31 and counts.passed_over_files[0].path == str(folder / ".hidden.jsonl")
    lines = describe_files(counts).splitlines()
    assert lines[0] == "files: 32 found = 1 read + 31 passed over"
    assert lines[1] == f"  passed over: {folder / '.hidden.jsonl'} (hidden)"
    assert lines[21] == "  and 11 more (in all: hidden 1, unknown_kind 30)"
    assert lines[22:] == [f"  {reason}: {REASONS[reason]}" for reason in ("hidden", "unknown_kind")]


def test_files_that_are_passed_over_are_told_by_those_who_only_read(folder, caplog):
    put(folder / "a.jsonl")
    put(folder / "b.csv")
    with caplog.at_level("WARNING", "megatron_sky"):
        assert find_files([folder]) == [folder / "a.jsonl"]
    assert "2 files found, 1 read, 1 passed over" in caplog.text and "b.csv (unknown_kind)" in caplog.text


def test_a_document_of_each_source_is_there_once(text_corpus, folder, tmp_path):
    """What a folder may hold, as people have it."""
    texts = {name: json.dumps({"text": name}).encode() + b"\n" for name in "abcdefgh"}
    put(folder / "a.jsonl", texts["a"])
    put(folder / "B.JSONL", texts["b"])
    put(folder / "f.jsonlines", texts["c"])
    put(folder / "d.jsonl.bz2", bz2.compress(texts["d"]))
    put(folder / "e.jsonl.xz", lzma.compress(texts["e"]))
    put(folder / "part-00000", texts["f"])
    put(tmp_path / "elsewhere" / "c.jsonl", texts["g"])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    put(folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", texts["a"])
    (meta,) = tokenize_files([folder], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    assert meta.documents.written == 7 and meta.files.passed_over == {"hidden": 1}
