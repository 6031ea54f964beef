"""The folder that a conversion writes: whole or not there, resumed where it was interrupted, never another's."""

import json
import logging
import shutil
from collections import namedtuple

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.convert import output as outputs
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.convert.weight_file import WeightFile, cant_write
from megatron_sky.errors import CheckpointError
from tests.convert.test_native import assert_same_weights


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


WRITERS = {"hf": (write_hf, "safetensors"), "native": (write_native, "distcp")}


TORN = ["conversion.json.tmp", ".conversion.json.0123456789abcdef.tmp"]  # as versions before wrote it, and as now


@pytest.mark.parametrize("writer", WRITERS)
def test_an_interrupted_conversion_leaves_nothing_and_goes_on(writer, native, tmp_path, monkeypatch):
    write, ending = WRITERS[writer]
    source = open_source(native("tp2"))
    out = tmp_path / "out"
    written = count_files(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        write(source, out, file_size=60_000)
    assert not out.exists()
    with pytest.raises(CheckpointError):
        open_source(tmp_path / "out.partial")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob(f"*.{ending}")}
    assert len(kept) == 4  # three whole ones and the one that was begun
    damaged = sorted(kept)[1]
    (tmp_path / "out.partial" / damaged).write_bytes(b"damaged meanwhile")
    written.clear()
    monkeypatch.setattr(WeightFile, "finish", written.original)
    again = write(source, out, file_size=60_000)
    unchanged = [name for name in sorted(kept)[:3] if (out / name).stat().st_mtime_ns == kept[name]]
    assert unchanged == [name for name in sorted(kept)[:3] if name != damaged]
    assert not (tmp_path / "out.partial").exists()
    assert_same_weights(source, open_source(out))
    whole = write(source, tmp_path / "whole", file_size=60_000)
    assert {n: r["size"] for n, r in again.files.items()} == {n: r["size"] for n, r in whole.files.items()}


class Written(list):
    original = None


def count_files(monkeypatch, stop_after: int) -> Written:
    """Interrupts the conversion when more weight files than that are finished."""
    written = Written()
    written.original = WeightFile.finish

    def finish(self):
        if len(written) == stop_after:
            raise KeyboardInterrupt
        written.append(self.path.name)
        return written.original(self)

    monkeypatch.setattr(WeightFile, "finish", finish)
    return written


def test_a_finished_conversion_is_not_done_again_and_another_is_refused(native, tmp_path):
    source = open_source(native("tp2"))
    first_time = write_hf(source, tmp_path / "hf")
    stamp = (tmp_path / "hf" / "model.safetensors").stat().st_mtime_ns
    assert write_hf(source, tmp_path / "hf").files == first_time.files
    assert (tmp_path / "hf" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(CheckpointError, match="exists already"):
        write_hf(open_source(native("one")), tmp_path / "hf")


def test_a_changed_option_or_file_is_not_taken_for_done(native, corpus, tmp_path):
    """What a finished folder depends on is in its record; what differs now is named."""
    bare = tmp_path / "bare"
    shutil.copytree(native("one"), bare)
    (bare / "tokenizer.model").unlink()
    manifest = json.loads((bare / store.MANIFEST).read_text())
    del manifest["files"]["tokenizer.model"]
    (bare / store.MANIFEST).write_text(json.dumps(manifest))
    write_hf(open_source(bare), tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"exists already(?s:.*)tokenizer: none then, tokenizer.model now"):
        write_hf(open_source(bare, tokenizer=corpus / "tokenizer.model"), tmp_path / "hf")
    write_native(open_source(tmp_path / "hf"), tmp_path / "native")
    edit(tmp_path / "hf", rope_theta=500_000.0, rope_parameters=None)
    with pytest.raises(CheckpointError, match=r"model.rotary_base: 10000.0 then, 500000.0 now"):
        write_native(open_source(tmp_path / "hf"), tmp_path / "native")
    write_native(open_source(tmp_path / "hf", tokenizer=corpus / "tokenizer.model"), tmp_path / "native2")
    other = tmp_path / "tokenizer.model"
    other.write_bytes((corpus / "tokenizer.model").read_bytes() + b"\x1a\x00")
    with pytest.raises(CheckpointError, match=r"tokenizer.tokenizer.model: \w{12} then, \w{12} now"):
        write_native(open_source(tmp_path / "hf", tokenizer=other), tmp_path / "native2")


def test_a_moved_checkpoint_is_the_same_source(native, tmp_path):
    shutil.copytree(native("one"), tmp_path / "step_0000002")
    first_time = write_hf(open_source(native("one")), tmp_path / "hf")
    assert write_hf(open_source(tmp_path / "step_0000002"), tmp_path / "hf").files == first_time.files


@pytest.mark.parametrize("changed", [{}, {"vocab_size": 690}, {"conversion": "words"}], ids=str)
def test_a_record_of_an_earlier_version_is_read(changed, native, tmp_path, caplog):
    source = open_source(native("one"))
    done = write_hf(source, tmp_path / "hf")
    path = tmp_path / "hf" / "conversion.json"
    record = json.loads(path.read_text())
    for name in ("model", "dtype", "tokenizer", "adds_begin"):
        del record["conversion"][name]
    record["conversion"] = changed.pop("conversion", record["conversion"] | changed)
    path.write_text(json.dumps(record))
    if record["conversion"] == "words" or changed:
        with pytest.raises(CheckpointError, match="exists already"):
            write_hf(source, tmp_path / "hf")
        return
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        assert write_hf(source, tmp_path / "hf").files == done.files
    assert "did not note adds_begin, dtype, model, tokenizer" in caplog.text


def test_a_finished_folder_that_was_damaged_is_named(native, tmp_path):
    write_hf(open_source(native("one")), tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"hf: exists already, but its model.safetensors is missing"):
        write_hf(open_source(native("one")), tmp_path / "hf")


def test_a_file_where_the_folder_goes_is_told(native, tmp_path):
    (tmp_path / "hf").write_text("mine")
    with pytest.raises(CheckpointError, match="hf: exists already"):
        write_hf(open_source(native("one")), tmp_path / "hf")
    assert (tmp_path / "hf").read_text() == "mine"


@pytest.mark.parametrize("names", [["notes.txt"], ["model.safetensors"], ["conversion.json", "notes.txt"]], ids=str)
def test_another_programs_partial_folder_is_left_alone(names, native, tmp_path):
    partial = tmp_path / "hf.partial"
    partial.mkdir()
    for name in names:
        (partial / name).write_text("mine")
    with pytest.raises(CheckpointError, match=rf"hf.partial: holds {names[-1]} and no conversion.json"):
        write_hf(open_source(native("one")), tmp_path / "hf")
    assert sorted(path.name for path in partial.iterdir()) == sorted(names)


@pytest.mark.parametrize("names", [[], TORN, ["conversion.json", "model.safetensors"]], ids=str)
def test_a_partial_folder_whose_record_a_crash_took_is_begun_anew(names, native, tmp_path):
    (tmp_path / "hf.partial").mkdir()
    for name in names:
        (tmp_path / "hf.partial" / name).write_text("")
    source = open_source(native("one"))
    assert_same_weights(source, open_source(write_hf(source, tmp_path / "hf").folder))


def test_two_conversions_into_one_folder_are_kept_apart(native, tmp_path):
    source = open_source(native("tp2"))
    with outputs.prepared(tmp_path / "hf", {}), pytest.raises(CheckpointError, match="another process"):
        write_hf(source, tmp_path / "hf")
    write_hf(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]  # neither a lock nor an unfinished file stays beside it


def test_an_unfinished_record_is_not_published(native, tmp_path, monkeypatch):
    source = open_source(native("one"))
    monkeypatch.setattr(WeightFile, "write", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        write_hf(source, tmp_path / "hf")
    monkeypatch.undo()
    for name in TORN:
        (tmp_path / "hf.partial" / name).write_text("{")
    assert not {path.name for path in write_hf(source, tmp_path / "hf").folder.iterdir()} & set(TORN)


@pytest.mark.parametrize("writer", WRITERS)
def test_too_small_a_disk_is_told_before_and_during(writer, native, tmp_path, monkeypatch):
    write, _ = WRITERS[writer]
    source = open_source(native("tp2"))
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"needs .* bytes, the disk has 1,000 free"):
        write(source, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(WeightFile, "write", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def full_disk(self, data):
    raise cant_write(self.path, OSError(28, "No space left on device"))


def test_a_write_that_went_wrong_is_found(native, tmp_path, monkeypatch):
    """What goes to the disk is compared, not what was meant."""
    write = WeightFile.write

    def faulty(self, data):
        changed = bytearray(memoryview(data).cast("B"))
        if len(changed) > 4000:
            changed[2000] ^= 4
        return write(self, changed)

    monkeypatch.setattr(WeightFile, "write", faulty)
    with pytest.raises(CheckpointError, match=r"on its way to the disk, differs from what was read"):
        write_hf(open_source(native("tp2")), tmp_path / "hf", file_size=10**9)
    with pytest.raises(CheckpointError, match=r"on its way to the disk, differs from what was read"):
        write_native(open_source(native("tp2")), tmp_path / "native")
