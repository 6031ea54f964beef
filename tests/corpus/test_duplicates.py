import numpy as np
import pytest

from megatron_sky.corpus.duplicates import KEY, RULES, Signatures, choose_losers, losers_of
from megatron_sky.corpus.recipe import NearDuplicatesConfig


def entries(*rows):
    return np.array(list(rows), dtype=KEY)


def test_the_best_stays_whatever_the_order():
    rows = [(7, 0, 0, 1.0, 0), (7, 1, 4, 3.0, 0), (7, 2, 1, 2.0, 0), (8, 0, 1, 1.0, 0)]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        losers = choose_losers(entries(*[rows[i] for i in order]), 0)
        assert [(row["rank"], row["index"], RULES[row["rule"]]) for row in losers] == [(0, 0, "exact"), (2, 1, "exact")]


def test_the_first_of_equals_stays_and_held_out_ones_before_all():
    losers = choose_losers(entries((7, 1, 0, 1.0, 0), (7, 0, 5, 1.0, 0), (8, 0, 0, 9.0, 0), (8, 3, 3, 1.0, 1)), 4)
    assert [(row["rank"], row["index"], RULES[row["rule"]]) for row in losers] == [
        (0, 0, "near_held_out"),
        (1, 0, "near"),
    ]


def test_losers_of_a_unit_are_found_in_all_files(tmp_path):
    np.save(tmp_path / "exact_0.npy", choose_losers(entries((1, 0, 0, 2, 0), (1, 4, 3, 1, 0)), 0))
    np.save(tmp_path / "url_0.npy", choose_losers(entries((1, 4, 3, 1, 0), (1, 4, 9, 2, 0), (1, 5, 1, 1, 0)), 2))
    assert (
        losers_of(tmp_path, 4) == {3: "exact"} and losers_of(tmp_path, 5) == {1: "url"} and losers_of(tmp_path, 6) == {}
    )


@pytest.fixture
def signature(tmp_path):
    return Signatures(tmp_path, NearDuplicatesConfig())


def planted(draw, jaccard, size=1000):
    """Two sets of hashes that share this part of their union."""
    shared = int(size * jaccard)
    both = draw.integers(0, 1 << 63, size=shared, dtype=np.uint64)
    own = [draw.integers(0, 1 << 63, size=(size - shared) // 2, dtype=np.uint64) for _ in range(2)]
    return [np.unique(np.concatenate([both, part])).reshape(-1, 1) for part in own]


@pytest.mark.parametrize(("jaccard", "low", "high"), [(0.9, 0.95, 1.0), (0.5, 0.0, 0.01)])
def test_pairs_at_a_jaccard_of_nine_tenths_meet_and_at_a_half_do_not(signature, jaccard, low, high):
    draw, pairs = np.random.default_rng(3), 300
    met = 0
    for _ in range(pairs):
        one, other = (signature.get_signature(shingles) for shingles in planted(draw, jaccard))
        met += any(a == b for a, b in zip(one, other, strict=True))
    assert low <= met / pairs <= high


def test_a_long_text_has_the_signature_of_its_parts_together(signature, monkeypatch):
    shingles = np.random.default_rng(1).integers(0, 1 << 63, size=(300, 1), dtype=np.uint64)
    whole = signature.get_signature(shingles)
    monkeypatch.setattr("megatron_sky.corpus.duplicates._SHINGLES_AT_ONCE", 64)
    assert signature.get_signature(shingles) == whole
