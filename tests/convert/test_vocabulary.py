"""How many rows of an embedding are tokens: what the files say, what contradicts, and what nobody tells."""

import json
from pathlib import Path

import pytest

from megatron_sky.convert.vocabulary import tokenizer_size, tokens_beside, true_vocab_size
from megatron_sky.errors import CheckpointError

WHERE = Path("model")


@pytest.mark.parametrize(
    ("described", "tokenizer", "flag", "size"),
    [
        (100, None, None, 100),
        (None, 100, None, 100),
        (100, 100, None, 100),
        (None, None, 90, 90),
        (100, 90, 90, 90),  # the user's word settles it
        (128, 128, None, 128),
    ],
)
def test_the_size_is_what_is_said(described, tokenizer, flag, size):
    assert true_vocab_size(WHERE, rows=128, described=described, tokenizer=tokenizer, flag=flag) == size


@pytest.mark.parametrize(
    ("described", "tokenizer", "flag", "message"),
    [
        (None, None, None, "nothing tells how many of the embedding's 128 rows"),
        (100, 90, None, "its config says 100 and its tokenizer says 90"),
        (100, None, 90, "--vocab-size 90 contradicts"),
        (129, None, None, "has 129 tokens, but the embedding only 128 rows"),
        (None, None, 129, "has 129 tokens, but the embedding only 128 rows"),
    ],
)
def test_what_can_not_be_is_told(described, tokenizer, flag, message):
    with pytest.raises(CheckpointError, match=message):
        true_vocab_size(WHERE, rows=128, described=described, tokenizer=tokenizer, flag=flag)


def test_tokens_that_files_beside_the_tokenizer_add(corpus, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes((corpus / "tokenizer.model").read_bytes())
    size = tokenizer_size(path)
    assert tokens_beside(path) == 0 and tokens_beside(None) == 0 and tokenizer_size(None) is None
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|a|>": size, "<s>": 1}))
    assert tokens_beside(path) == 1
    config = {"added_tokens_decoder": {str(size + 2): {"content": "<|b|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens_beside(path) == 3 and tokenizer_size(path) == size + 3
