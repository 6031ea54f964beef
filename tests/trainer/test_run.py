"""What a run looks at before it starts."""

import pytest

from megatron_sky.errors import DataError
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, load_tokenizer
from megatron_sky.trainer.run import open_data


def test_data_that_ends_its_documents_in_another_way_is_named(recipe, corpus, monkeypatch):
    config = recipe(f"tokenizer.path={corpus}/tokenizer.model")
    open_data(config)
    ends_with = load_tokenizer(config.tokenizer.path).eod_id
    monkeypatch.setattr(SentencePieceTokenizer, "eod_id", 7)
    with pytest.raises(DataError, match=f"end with id {ends_with}, the recipe's tokenizer ends them with 7"):
        open_data(config)
