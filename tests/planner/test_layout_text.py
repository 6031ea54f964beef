"""Layouts as words."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.planner.layout_text import apply_layout, layout_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PP2 x DP8", "DP8 x PP2 MB1 zero1"),
        ("pp2xdp8", "DP8 x PP2 MB1 zero1"),
        ("tp2,pp2,vpp2,mb4,sp,full", "DP4 x TP2 x PP2 x VPP2 MB4 sp zero1 full"),
        ("CP2 selective fp8", "DP8 x CP2 MB1 zero1 selective fp8"),
        ("dp16", "DP16 MB1 zero1"),
    ],
)
def test_read_and_written(make_config, text, words):
    config = apply_layout(make_config(), text, 16)
    assert layout_words(config, 16) == words
    assert layout_words(apply_layout(make_config(), words, 16), 16) == words


@pytest.mark.parametrize(
    ("text", "said"), [("pp2 sideways", "'sideways' is no part"), ("pp0", "'pp0' is no part"), ("dp4", "makes 4 ranks")]
)
def test_what_is_none_is_told(make_config, text, said):
    with pytest.raises(ConfigError, match=said):
        apply_layout(make_config(), text, 16)
