"""Sampling options: all that is wrong at once, and transformers' names."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.generation.sampling import Sampling


def test_all_that_is_out_of_range_is_told_together():
    with pytest.raises(ConfigError) as caught:
        Sampling(0, -1.0, top_k=-1, top_p=0.0, min_p=2.0, repetition_penalty=0.0, num_beams=0, stop=("",), seed=-1)
    assert len(caught.value.problems) == 9 and "--max-new-tokens = 0: must be at least 1" in str(caught.value)


def test_not_a_number_is_out_of_range():
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        with pytest.raises(ConfigError, match=name.replace("_", "-")):
            Sampling(**{name: float("nan")})


def test_greedy_ones_leave_out_what_has_no_effect():
    assert Sampling(top_k=3).to_transformers().keys() == {
        "do_sample",
        "num_beams",
        "repetition_penalty",
        "no_repeat_ngram_size",
    }
    drawn = Sampling(temperature=0.5, min_p=0.1).to_transformers()
    assert (drawn["top_k"], drawn["top_p"], drawn["min_p"], drawn["do_sample"]) == (0, 1.0, 0.1, True)
