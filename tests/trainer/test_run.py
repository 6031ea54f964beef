"""What a run looks at before it starts."""

from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.errors import DataError
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, load_tokenizer
from megatron_sky.trainer.run import open_data
from tests.faults.harness import run_hurt


def test_data_that_ends_its_documents_in_another_way_is_named(recipe, corpus, monkeypatch):
    config = recipe(f"tokenizer.path={corpus}/tokenizer.model")
    open_data(config)
    ends_with = load_tokenizer(config.tokenizer.path).eod_id
    monkeypatch.setattr(SentencePieceTokenizer, "eod_id", 7)
    with pytest.raises(DataError, match=f"end with id {ends_with}, the recipe's tokenizer ends them with 7"):
        open_data(config)


def demand_another_numpy(config):
    from megatron_sky.distributed import requirements

    found = [requirements.compare("numpy", "<1.0", "1.26.4")]
    requirements.requirements = lambda: found


def test_a_run_outside_of_the_tested_versions_says_so_once(recipe, ranks):
    config = recipe("train.max_steps=1")
    (ended,) = ranks(1, run_hurt, dump_config(config), demand_another_numpy)
    assert ended.code == 0, ended.message
    log = (Path(config.train.run_dir) / "logs/rank_00000.log").read_text()
    assert log.count("numpy 1.26.4 is newer than tested (<1.0)") == 1
