import dataclasses
import os

import numpy as np
import pytest

from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens import meta as meta_module
from megatron_sky.data.tokens import scan as scan_module
from megatron_sky.data.tokens.adopt import write_meta_of
from megatron_sky.data.tokens.indexed import HEADER, bin_path, idx_path
from megatron_sky.data.tokens.meta import check_source, read_meta
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError
from tests.data.helpers import write_pair


@pytest.fixture
def pair(text_corpus, tmp_path, monkeypatch):
    """A pair whose tokens are hashed in blocks of 1000 bytes."""
    for module in (meta_module, scan_module):
        monkeypatch.setattr(module, "HASH_BLOCK", 1000)
    prefix = tmp_path / "a"
    return prefix, tokenize_files(
        [text_corpus.files["test"]["stem"]], prefix, text_corpus.tokenizer, TokenizeOptions()
    )[0]


def patch(path, at, new):
    with open(path, "rb+") as file:
        file.seek(at)
        file.write(new)


def test_a_whole_pair_passes(pair, text_corpus):
    prefix, meta = pair
    found = verify(prefix, tokenizer=text_corpus.tokenizer)
    assert found.meta == meta and found.num_tokens == meta.num_tokens and found.num_unended == 0
    assert len(meta.bin_blocks) == -(-meta.bin_size // 1000) > 3


def test_every_changed_byte_of_the_tokens_is_found_in_its_block(pair):
    prefix, meta = pair
    whole = bin_path(prefix).read_bytes()
    for at in (0, 999, 1000, len(whole) // 2, len(whole) - 1):
        patch(bin_path(prefix), at, bytes([whole[at] ^ 1]))
        with pytest.raises(DataError, match=r"a\.bin, byte"):
            verify(prefix)
        patch(bin_path(prefix), at, whole[at : at + 1])
    assert verify(prefix).meta == meta


def test_every_changed_byte_of_the_index_is_found(pair):
    prefix, meta = pair
    whole = idx_path(prefix).read_bytes()
    for at in sorted({*range(HEADER.size), *range(HEADER.size, len(whole), 37), len(whole) - 1}):
        patch(idx_path(prefix), at, bytes([whole[at] ^ 1]))
        with pytest.raises(DataError, match=r"a\.(idx|bin|meta)"):
            verify(prefix)
        patch(idx_path(prefix), at, whole[at : at + 1])
    assert verify(prefix).meta == meta


def test_the_first_fault_is_named_with_its_byte(tmp_path):
    prefix = write_pair(tmp_path / "a", [[1, 2, 3], [4], [5, 6], [7, 8]])
    assert verify(prefix).meta is None
    header = HEADER.size
    patch(idx_path(prefix), header + 16 + 8, np.int64(4).tobytes())
    with pytest.raises(DataError, match=rf"byte {header + 24}: sequence 1 begins at byte 4 by its pointer, at 6"):
        verify(prefix)
    write_pair(prefix, [[1, 2, 3], [4], [5, 6], [7, 8]])
    patch(idx_path(prefix), header + 16 + 32 + 16, np.int64(0).tobytes())
    with pytest.raises(DataError, match=rf"byte {header + 64}: document 1 ends at sequence 0"):
        verify(prefix)


def test_ids_are_held_against_the_tokenizer(tmp_path, text_corpus):
    prefix = write_pair(tmp_path / "a", [[1, 599], [3, 600, 2]])
    with pytest.raises(DataError, match=r"a\.bin, byte 6: token 3 is 600, outside \[0, 600\)"):
        verify(prefix, tokenizer=text_corpus.tokenizer)
    negative = write_pair(tmp_path / "n", [[1, -5]], np.int32)
    with pytest.raises(DataError, match="byte 4: token 1 is -5"):
        verify(negative)


def test_documents_without_an_end_are_told(tmp_path, text_corpus, monkeypatch):
    monkeypatch.setattr(scan_module, "HASH_BLOCK", 4)
    prefix = write_pair(tmp_path / "a", [[5, 2], [5, 5, 5], [], [5, 2], [9]])
    assert verify(prefix, tokenizer=text_corpus.tokenizer).num_unended == 2


def test_contradictions_with_the_meta_file_are_named(pair, text_corpus):
    prefix, meta = pair
    wrong = {
        "max_token_id": 3,
        "num_tokens": meta.num_tokens + 1,
        "idx_xxh3": "0" * 32,
        "bin_blocks": (*meta.bin_blocks[:-1], "0" * 64),
        "documents": dataclasses.replace(meta.documents, read=1),
        "dtype": "int32",
    }
    for name, value in wrong.items():
        dataclasses.replace(meta, **{name: value}).write(prefix)
        with pytest.raises(DataError, match=r"a\.(meta|bin|idx)"):
            verify(prefix)
    dataclasses.replace(meta, tokenizer=dataclasses.replace(meta.tokenizer, sha256="0" * 64)).write(prefix)
    with pytest.raises(DataError, match="made with tokenizer"):
        verify(prefix, tokenizer=text_corpus.tokenizer)


def test_a_pair_of_another_tool_gets_a_meta_file(pair, text_corpus):
    prefix, meta = pair
    os.remove(f"{prefix}.meta.json")
    found = verify(prefix, tokenizer=text_corpus.tokenizer)
    write_meta_of(found, text_corpus.tokenizer)
    assert verify(prefix, tokenizer=text_corpus.tokenizer).meta == read_meta(prefix)
    again = check_source(prefix, vocab_size=600, tokenizer_sha256=text_corpus.tokenizer.sha256)
    assert again.unigram_entropy == meta.unigram_entropy and again.append_eod


def test_a_float_pair_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't hold token ids"):
        verify(write_pair(tmp_path / "a", [[1.0]], np.float32))
