import pytest

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.sampling.mixture import SessionMixture, mixture_table, open_plan
from megatron_sky.errors import ConfigError
from tests.data.helpers import write_pair


def test_the_table_tells_tokens_shares_and_epochs(tmp_path):
    for name in "ab":
        write_pair(tmp_path / name, [list(range(1, 1602))])
    config = DataConfig(
        train=(
            {"name": "a", "path": str(tmp_path / "a"), "weight": {"start": 0.9, "end": 0.6}},
            {"name": "b", "path": str(tmp_path / "b"), "weight": {"start": 0.1, "end": 0.4}},
        ),
        max_epochs=7,
    )
    table = mixture_table(open_plan(config, seq_length=16, sessions=[SessionMixture(0, 1000)]).segments[0])
    a, b = table.rows
    assert (a.given_tokens, b.given_tokens) == (12_000, 4_000) and (a.epochs, b.epochs) == (7.5, 2.5)
    assert (a.share_start, a.share_end, b.share) == (pytest.approx(0.9), pytest.approx(0.6), 0.25)
    assert len(table.problems) == 1 and "7.50 times" in table.text and "12.00k" in table.text


def test_no_source_is_told():
    with pytest.raises(ConfigError, match="names no source"):
        open_plan(DataConfig(), seq_length=16, sessions=[SessionMixture(0, 1)])
