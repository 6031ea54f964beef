import dataclasses
import errno
import json
import math
import os
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_sky.cli import data as cli_data
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files, tokenize_jsonl
from megatron_sky.data.tokens.indexed import bin_path
from megatron_sky.data.tokens.meta import (
    BrokenMeta,
    check_source,
    entropy,
    hash_blocks,
    meta_path,
    read_meta,
)
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError
from tests.data.helpers import write_pair


@pytest.fixture
def pair(text_corpus, tmp_path):
    prefix = tmp_path / "stem"
    return prefix, tokenize_jsonl([text_corpus.files["test"]["stem"]], prefix, text_corpus.tokenizer)


def test_round_trip(pair):
    prefix, meta = pair
    assert read_meta(prefix) == meta
    assert meta.documents.read == meta.documents.written + meta.documents.empty + meta.documents.rejected


def test_a_pair_without_meta_is_allowed(tmp_path):
    assert read_meta(write_pair(tmp_path / "a", [[1]])) is None
    assert check_source(tmp_path / "a", vocab_size=1) is None


def test_check_source_accepts_what_agrees(pair, text_corpus):
    prefix, meta = pair
    assert check_source(prefix, vocab_size=600, tokenizer_sha256=text_corpus.tokenizer.sha256) == meta


def test_a_small_vocabulary_is_named_with_both_numbers(pair):
    prefix, meta = pair
    with pytest.raises(DataError, match=rf"token id {meta.max_token_id}.*vocab_size = {meta.max_token_id}"):
        check_source(prefix, vocab_size=meta.max_token_id)


def test_another_tokenizer_is_named(pair):
    with pytest.raises(DataError, match="made with the tokenizer"):
        check_source(pair[0], vocab_size=600, tokenizer_sha256="0" * 64)


@pytest.mark.parametrize("name", ["num_tokens", "num_documents", "bin_size", "idx_size", "num_sequences"])
def test_contradicting_files_are_named(pair, name):
    prefix, meta = pair
    dataclasses.replace(meta, **{name: getattr(meta, name) + 1}).write(prefix)
    with pytest.raises(DataError, match=name):
        check_source(prefix, vocab_size=600)


def test_meta_files_of_another_version_are_named(pair):
    prefix, _ = pair
    meta_path(prefix).write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="is 99; this program knows 2") as caught:
        read_meta(prefix)
    assert not isinstance(caught.value, BrokenMeta)


@pytest.mark.parametrize(
    "text", ["{", "", "[]", "{}", '{"format_version": 2}', '{"format_version": 2, "tokenizer": 3}']
)
def test_broken_meta_files_are_named_with_a_fix_that_fixes(text_corpus, pair, text):
    prefix, meta = pair
    meta_path(prefix).write_text(text)
    with pytest.raises(BrokenMeta, match=r"stem\.meta\.json is no complete meta file") as caught:
        read_meta(prefix)
    fix = re.search(r"`megatron-sky data (.*?)`", str(caught.value)).group(1)
    words = fix.replace(" T ", f" {text_corpus.tokenizer_path} ").split()
    without = [word for word in words if word != "--write-meta"]
    assert isinstance(CliRunner().invoke(cli_data.app, without).exception, BrokenMeta)
    assert CliRunner().invoke(cli_data.app, words).exit_code == 0
    written = read_meta(prefix)
    assert written.bin_blocks == meta.bin_blocks and written.documents.written == meta.documents.written
    assert check_source(prefix, vocab_size=600, tokenizer_sha256=text_corpus.tokenizer.sha256) == written


def test_the_field_of_a_broken_meta_file_is_named_with_its_value_and_its_rule(pair):
    prefix, _ = pair
    given = json.loads(meta_path(prefix).read_text())
    given["sources"][0]["size"] = "big"
    del given["documents"]["read"]
    meta_path(prefix).write_text(json.dumps(given))
    with pytest.raises(BrokenMeta) as caught:
        read_meta(prefix)
    for part in ("stem.meta.json", "sources.0.size = 'big': should be a valid integer", "documents.read: is required"):
        assert part in str(caught.value)


def test_a_meta_file_that_may_not_be_read_is_not_called_broken(pair, monkeypatch):
    def refuse(*arguments, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("megatron_sky.data.tokens.meta.read_json", refuse)
    with pytest.raises(DataError, match=r"meta\.json can't be read: Permission denied$") as caught:
        read_meta(pair[0])
    assert not isinstance(caught.value, BrokenMeta)


def test_unknown_fields_of_a_later_writer_are_passed_over(pair):
    prefix, meta = pair
    given = json.loads(meta_path(prefix).read_text())
    meta_path(prefix).write_text(json.dumps(given | {"later": 1}))
    assert read_meta(prefix) == meta


def test_a_file_whose_name_is_no_utf8_is_named_all_the_same(text_corpus, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"a\xff.jsonl", b"b\xff.csv"):
        with open(os.fsencode(folder) + b"/" + name, "w") as file:
            file.write('{"text": "a"}\n')
    (meta,) = tokenize_files([folder], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    assert read_meta(tmp_path / "out") == meta and os.path.exists(meta.sources[0].path)
    assert os.path.exists(meta.files.passed_over_files[0].path)


def test_an_account_of_files_that_does_not_add_up_is_told(pair):
    prefix, meta = pair
    dataclasses.replace(meta, files=dataclasses.replace(meta.files, found=5)).write(prefix)
    with pytest.raises(DataError, match="files found are not those read and passed over"):
        verify(prefix)


def test_entropy():
    assert entropy(np.array([1, 1, 0, 1, 1])) == pytest.approx(math.log(4))
    assert entropy(np.array([7])) == entropy(np.array([0])) == 0


def test_hash_blocks_cover_the_file(pair, tmp_path):
    import xxhash

    path = bin_path(pair[0])
    whole = path.read_bytes()
    expected = tuple(xxhash.xxh3_128_hexdigest(whole[start : start + 1000]) for start in range(0, len(whole), 1000))
    assert hash_blocks(path, 1000) == expected
