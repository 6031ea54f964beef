import numpy as np
import pytest

from megatron_sky.data.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.merge import merge, pairs_in_folder
from megatron_sky.data.meta import meta_path
from megatron_sky.data.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokenizer import train_tokenizer
from megatron_sky.data.verify import verify
from megatron_sky.errors import DataError

from .helpers import megatron_datasets, read_texts, write_pair


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


def test_meta_files_are_added_up(corpus, tmp_path):
    parts = [tmp_path / domain for domain in ("code", "stem")]
    metas = [tokenize_files([corpus.files["test"][p.name]], p, corpus.tokenizer, TokenizeOptions())[0] for p in parts]
    merged = merge(parts, tmp_path / "out")
    assert merged.num_tokens == sum(meta.num_tokens for meta in metas)
    assert merged.documents.read == sum(meta.documents.read for meta in metas)
    assert verify(tmp_path / "out", tokenizer=corpus.tokenizer).meta == merged


def test_what_does_not_fit_is_named(corpus, tmp_path):
    narrow, wide = write_pair(tmp_path / "a", [[1]]), write_pair(tmp_path / "b", [[1]], np.int32)
    with pytest.raises(DataError, match="differ in number format"):
        merge([narrow, wide], tmp_path / "out")
    with pytest.raises(DataError, match="an input and the output"):
        merge([narrow], narrow, overwrite=True)
    with pytest.raises(DataError, match="exists already"):
        merge([narrow], wide)
    path = corpus.files["test"]["code"]
    tokenize_files([path], tmp_path / "c", corpus.tokenizer, TokenizeOptions())
    with pytest.raises(DataError, match=r"meta\.json is missing"):
        merge([tmp_path / "c", narrow], tmp_path / "out")
    other = train_tokenizer(read_texts(path), tmp_path / "other.model", 400)
    tokenize_files([path], tmp_path / "d", other, TokenizeOptions())
    with pytest.raises(DataError, match="made with tokenizer other"):
        merge([tmp_path / "c", tmp_path / "d"], tmp_path / "out")
    assert not bin_path(tmp_path / "out").exists() and not meta_path(tmp_path / "out").exists()


def test_a_merge_interrupted_before_its_meta_file_is_told(corpus, tmp_path, monkeypatch):
    part, out = tmp_path / "part", tmp_path / "out"
    tokenize_files([corpus.files["test"]["code"]], part, corpus.tokenizer, TokenizeOptions())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("megatron_sky.data.merge.describe", raises(KeyboardInterrupt))
        merge([part], out)
    with pytest.raises(DataError, match=r"without out\.meta\.json, as an interrupted merge.*\n.*--overwrite"):
        merge([part], out)
    assert verify(out).meta is None
    assert merge([part], out, overwrite=True) == verify(out, tokenizer=corpus.tokenizer).meta


def raises(error):
    def call(*arguments, **more):
        raise error

    return call


def test_a_folder_names_its_pairs(tmp_path):
    for name in "ba":
        write_pair(tmp_path / name, [[1]])
    assert pairs_in_folder(tmp_path) == [str(tmp_path / "a"), str(tmp_path / "b")]
    idx_path(tmp_path / "a").unlink()
    with pytest.raises(DataError, match=r"a\.idx is missing"):
        pairs_in_folder(tmp_path)


def test_empty_shards_are_taken(tmp_path):
    empty = write_pair(tmp_path / "a", [])
    merge([empty, write_pair(tmp_path / "b", [[3]])], tmp_path / "out")
    with IndexedTokens(tmp_path / "out") as pair:
        assert pair.num_documents == 1
