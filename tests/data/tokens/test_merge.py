import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_sky.data.ingest import inputs as inputs_module
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.tokens.merge import merge, pairs_in_folder
from megatron_sky.data.tokens.meta import DocumentCounts, TokenizerRecord, meta_path, read_meta
from megatron_sky.data.tokens.scan import describe
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError
from megatron_sky.tokenizer.train import train_tokenizer
from tests.data.helpers import killed_at, megatron_datasets, read_texts, write_pair

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def test_bytes_are_megatrons(tmp_path):
    indexed = megatron_datasets("indexed_dataset")
    first, second = write_pair(tmp_path / "a", [[1, 2], [3]]), write_pair(tmp_path / "b", [[4], [], [5, 6]])
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for prefix in (first, second):
        builder.add_index(str(prefix))
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert merge([first, second], tmp_path / "ours") is None
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "theirs").read_bytes()


def test_meta_files_are_added_up(text_corpus, tmp_path):
    parts = [tmp_path / domain for domain in ("code", "stem")]
    metas = [
        tokenize_files([text_corpus.files["test"][p.name]], p, text_corpus.tokenizer, TokenizeOptions())[0]
        for p in parts
    ]
    merged = merge(parts, tmp_path / "out")
    assert merged.num_tokens == sum(meta.num_tokens for meta in metas)
    assert merged.documents.read == sum(meta.documents.read for meta in metas)
    assert verify(tmp_path / "out", tokenizer=text_corpus.tokenizer).meta == merged


def test_what_does_not_fit_is_named(text_corpus, tmp_path):
    narrow, wide = write_pair(tmp_path / "a", [[1]]), write_pair(tmp_path / "b", [[1]], np.int32)
    with pytest.raises(DataError, match="differ in number format"):
        merge([narrow, wide], tmp_path / "out")
    for same in (narrow, tmp_path / "." / ".." / tmp_path.name / "a", os.path.relpath(narrow)):
        with pytest.raises(DataError, match="an input and the output"):
            merge([narrow], same, overwrite=True)
    with pytest.raises(DataError, match="exists already"):
        merge([narrow], wide)
    path = text_corpus.files["test"]["code"]
    tokenize_files([path], tmp_path / "c", text_corpus.tokenizer, TokenizeOptions())
    with pytest.raises(DataError, match=r"meta\.json is missing"):
        merge([tmp_path / "c", narrow], tmp_path / "out")
    other = train_tokenizer(read_texts(path), tmp_path / "other.model", 400)
    tokenize_files([path], tmp_path / "d", other, TokenizeOptions())
    with pytest.raises(DataError, match="made with tokenizer other"):
        merge([tmp_path / "c", tmp_path / "d"], tmp_path / "out")
    assert not bin_path(tmp_path / "out").exists() and not meta_path(tmp_path / "out").exists()


@pytest.mark.parametrize("order", [("narrow", "wide"), ("wide", "narrow")])
def test_pairs_of_one_tokenizer_in_two_number_formats_merge_to_the_wider(tmp_path, order):
    """Between 65,500 and 65,535 tokens other tools write uint16, this program int32."""
    tokenizer = TokenizerRecord("t.model", "0" * 64, 65_520, 2)
    documents = {"narrow": [[7, 65_519, 2], [9, 2]], "wide": [[65_501, 2]]}
    for name, dtype in (("narrow", np.uint16), ("wide", np.int32)):
        write_pair(tmp_path / name, documents[name], dtype)
    with pytest.raises(DataError, match=r"number format \(.*narrow: uint16.*\), and without meta files nothing says"):
        merge([tmp_path / "narrow", tmp_path / "wide"], tmp_path / "out")
    for name in order:
        counts = DocumentCounts(len(documents[name]), len(documents[name]))
        describe(tmp_path / name, tokenizer, append_eod=True, documents=counts).write(tmp_path / name)
    meta = merge([tmp_path / name for name in order], tmp_path / "out")
    write_pair(tmp_path / "one", [document for name in order for document in documents[name]], np.int32)
    assert bin_path(tmp_path / "out").read_bytes() == bin_path(tmp_path / "one").read_bytes()
    assert idx_path(tmp_path / "out").read_bytes() == idx_path(tmp_path / "one").read_bytes()
    assert verify(tmp_path / "out").meta == meta and meta.dtype == "int32" and meta.max_token_id == 65_519


def test_the_account_of_files_is_of_each_job_once(text_corpus, tmp_path, shards):
    (shards.folder / "notes.md").write_text("no text to train on")
    parts = shards(3, range(3))
    assert all(read_meta(part).files.read == 1 for part in parts)
    other = tmp_path / "other"
    tokenize_files([text_corpus.files["test"]["code"]], other, text_corpus.tokenizer, TokenizeOptions())
    merged = merge([*parts, other], tmp_path / "out")
    assert (merged.files.found, merged.files.read, merged.files.passed_over) == (3, 2, {"unknown_kind": 1})
    assert [Path(file.path).name for file in merged.files.passed_over_files] == ["notes.md"]
    verify(tmp_path / "out")
    old = json.loads(meta_path(other).read_text())
    del old["files"]  # as of a version that did not count them
    meta_path(other).write_text(json.dumps(old))
    assert merge([*parts, other], tmp_path / "again").files is None


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_merge_interrupted_before_its_meta_file_leaves_nothing(text_corpus, tmp_path, monkeypatch):
    part, out = tmp_path / "part", tmp_path / "out"
    tokenize_files([text_corpus.files["test"]["code"]], part, text_corpus.tokenizer, TokenizeOptions())
    before = names_in(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("megatron_sky.data.tokens.merge.describe", raises(KeyboardInterrupt))
        merge([part], out)
    assert names_in(tmp_path) == before
    assert merge([part], out) == verify(out, tokenizer=text_corpus.tokenizer).meta


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_merge_killed_at_any_point_leaves_no_pair_that_looks_whole(text_corpus, tmp_path, overwrite):
    part = tmp_path / "part"
    tokenize_files([text_corpus.files["test"]["code"]], part, text_corpus.tokenizer, TokenizeOptions())
    whole = merge([part], tmp_path / "whole")
    step = 1
    while True:
        folder = tmp_path / f"killed{step}"
        folder.mkdir()
        if overwrite:
            write_pair(folder / "out", [[1, 2], [3]])
        if not killed_at(step, lambda out=folder / "out": merge([part], out, overwrite=overwrite)):
            break
        names = names_in(folder)
        if "out.idx" in names and read_meta(folder / "out") is not None:
            assert verify(folder / "out").meta == whole  # all of it is there, but for a temporary file
        elif "out.idx" in names:
            assert overwrite and verify(folder / "out").num_documents == 2  # the one that was to be replaced
        else:
            merge([part], folder / "out", overwrite=overwrite)
            assert names_in(folder) == ["out.bin", "out.idx", "out.meta.json"]
        step += 1
    assert step > 4
    assert names_in(folder) == ["out.bin", "out.idx", "out.meta.json"]


def test_a_pair_without_its_meta_file_as_earlier_versions_left_it_is_told(text_corpus, tmp_path):
    part, out = tmp_path / "part", tmp_path / "out"
    tokenize_files([text_corpus.files["test"]["code"]], part, text_corpus.tokenizer, TokenizeOptions())
    merge([part], out)
    meta_path(out).unlink()
    with pytest.raises(DataError, match=r"without out\.meta\.json, as an interrupted merge.*\n.*--overwrite"):
        merge([part], out)


def raises(error):
    def call(*arguments, **more):
        raise error

    return call


def test_a_folder_names_its_pairs(tmp_path):
    out = tmp_path / "out"
    for name in "ba":
        write_pair(tmp_path / name, [[1]])
    expected = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert pairs_in_folder(tmp_path, out=out) == expected
    merge(expected, out)
    assert pairs_in_folder(tmp_path, out=out) == pairs_in_folder(tmp_path, out=os.path.relpath(out)) == expected
    assert pairs_in_folder(tmp_path, out=tmp_path / "other") == [*expected, str(out)]
    bin_path(out).unlink()  # as a merge that was killed may leave it
    assert pairs_in_folder(tmp_path, out=out) == expected
    idx_path(tmp_path / "a").unlink()
    with pytest.raises(DataError, match=r"a\.idx is missing"):
        pairs_in_folder(tmp_path, out=out)


def test_a_tokenized_pair_of_a_folder_is_not_replaced_by_the_others(text_corpus, tmp_path):
    tokenize_files([text_corpus.files["test"]["code"]], tmp_path / "a", text_corpus.tokenizer, TokenizeOptions())
    with pytest.raises(DataError, match="a is an input and the output"):
        pairs_in_folder(tmp_path, out=tmp_path / "a")


def test_merging_a_folder_again_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tk").mkdir()
    for name in "ab":
        write_pair(tmp_path / "tk" / name, [[1, 2], [3]])
    command = [sys.executable, str(TOOLS / "merge_datasets.py"), "--input", "./tk", "--output-prefix", "./tk/merged"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "2 pairs merged" in done.stdout
        with IndexedTokens(tmp_path / "tk" / "merged") as pair:
            assert pair.num_documents == 4


@pytest.fixture
def shards(text_corpus, tmp_path, monkeypatch):
    """From a number of parts, those to make, and the texts to take more of them from: the parts' prefixes."""
    monkeypatch.setattr(inputs_module, "BLOCK_BYTES", 2048)
    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(text_corpus.files["test"]["stem"], folder / "b.jsonl")

    def make(count, indexes, *, name="s", **options):
        made = [tmp_path / f"{name}_{index}_of_{count}" for index in indexes]
        for index, prefix in zip(indexes, made, strict=True):
            given = TokenizeOptions(shard=(index, count), **options)
            tokenize_files([folder], prefix, text_corpus.tokenizer, given)
        return made

    make.folder = folder
    return make


def test_missing_shards_are_named(text_corpus, tmp_path, shards):
    parts = shards(8, [0, 1, 3, 6, 7])
    with pytest.raises(DataError, match=r"s_0_of_8 is one of 8 parts, numbered from 0; missing: 2, 4-5\n"):
        merge(parts, tmp_path / "out")
    assert not bin_path(tmp_path / "out").exists()
    plain = tmp_path / "plain"
    tokenize_files([text_corpus.files["test"]["code"]], plain, text_corpus.tokenizer, TokenizeOptions())
    with pytest.raises(DataError, match="missing: 2, 4-5\n"):
        merge([plain, *parts], tmp_path / "out")
    parts += shards(8, [2, 4, 5], strict=True)
    merged = merge([plain, *parts], tmp_path / "out")
    assert merged.shard is None and merged.documents.read == sum(
        read_meta(each).documents.read for each in [plain, *parts]
    )
    merge([tmp_path / "out", *shards(1, [0])], tmp_path / "more")  # what was merged, or is a part of one, is a whole


def test_a_part_that_is_there_twice_is_refused(tmp_path, shards):
    (again,) = shards(3, [1], name="again")
    for more in (again, *shards(2, [0, 1])):
        with pytest.raises(DataError, match=r"of a job, .* belongs to the same job cut into 3: .* twice"):
            merge([*shards(3, range(3)), more], tmp_path / "out")


@pytest.mark.parametrize("change", ["comes", "goes", "grows", "options"])
def test_shards_of_different_lists_are_refused(text_corpus, tmp_path, shards, change):
    shutil.copy(text_corpus.files["test"]["code"], shards.folder / "d.jsonl")
    parts = shards(4, [0, 1])
    options = {}
    if change == "comes":
        shutil.copy(text_corpus.files["test"]["en_web"], shards.folder / "a.jsonl")
    elif change == "goes":
        (shards.folder / "b.jsonl").unlink()
    elif change == "grows":
        with open(shards.folder / "d.jsonl", "a") as file:
            file.write('{"text": "more"}\n')
    else:
        options["append_eod"] = False
    parts += shards(4, [2, 3], **options)
    with pytest.raises(
        DataError, match=r"different lists of files(.|\n)*s_0_of_4 .*missing: 2-3\n.*s_2_of_4 .*: 0-1\n"
    ):
        merge(parts, tmp_path / "out")
    parts = shards(4, range(4), overwrite=True, **options)
    merge(parts, tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):  # made from the list that was: not taken for done
        os.utime(shards.folder / "d.jsonl")
        (shards.folder / "z.jsonl").write_text('{"text": "late"}\n')
        shards(4, [0], **options)


def test_parts_of_several_keys_are_jobs_of_their_own(tmp_path, shards):
    for path in shards.folder.iterdir():
        path.write_text("".join(json.dumps({"q": f"q{n}" * 90, "a": f"a{n}"}) + "\n" for n in range(40)))
    parts = shards(2, [0, 1], keys=("q", "a"))
    merge([f"{each}_q" for each in parts], tmp_path / "q")
    merge([f"{each}_{key}" for key in "qa" for each in parts], tmp_path / "both")
    with pytest.raises(DataError, match="different lists"):
        merge([f"{parts[0]}_q", f"{parts[1]}_a"], tmp_path / "mixed")


def test_shards_whose_meta_file_says_nothing_of_it_are_plain_pairs(tmp_path, shards):
    parts = shards(3, [0, 2])
    for prefix in parts:
        told = json.loads(meta_path(prefix).read_text())
        del told["shard"]
        meta_path(prefix).write_text(json.dumps(told))
    assert merge(parts, tmp_path / "out").documents.read


def test_empty_shards_are_taken(tmp_path):
    empty = write_pair(tmp_path / "a", [])
    merge([empty, write_pair(tmp_path / "b", [[3]])], tmp_path / "out")
    with IndexedTokens(tmp_path / "out") as pair:
        assert pair.num_documents == 1
