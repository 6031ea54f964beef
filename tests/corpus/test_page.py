import numpy as np

from megatron_sky.corpus.duplicates import SIZES, cluster_sizes, read_cluster_sizes
from megatron_sky.corpus.ledger import Amount, StageAccount
from megatron_sky.corpus.page import Bin, funnels, histograms
from megatron_sky.corpus.stage import save_array


def account(**histograms):
    return StageAccount(histograms=histograms)


def test_histograms_show_documents_before_and_after_on_even_axes():
    stages = {
        "language": {
            "web": account(characters={"64": 1, "512": 5}, language={"zh": 2, "en": 4}),
            "wiki": account(characters={"512": 1}),
        },
        "quality": {"web": account(perplexity_zh={"256": 2, "2048": 1}, score_en={"0.9": 3})},
        "route": {"web": account(characters={"512": 3}, language={"zh": 3}, perplexity_zh={"256": 2})},
    }
    shown = {one.en: list(one.bins) for one in histograms(stages, {"near": {"2": 4, "6": 1, "8": 2}, "exact": {}})}
    assert list(shown) == [
        "Length, characters",
        "Language",
        "Score of quality, English",
        "Perplexity, Chinese",
        "Near copies by size of cluster",
    ]
    assert shown["Length, characters"] == [Bin("64", 1, 0), Bin("128", 0, 0), Bin("256", 0, 0), Bin("512", 6, 3)]
    assert shown["Language"] == [Bin("en", 4, 0), Bin("zh", 2, 3)]
    assert len(shown["Score of quality, English"]) == 10 and shown["Score of quality, English"][9] == Bin("0.9", 3, 0)
    assert [one.name for one in shown["Perplexity, Chinese"]] == ["256", "512", "1k", "2k"]
    assert shown["Near copies by size of cluster"] == [Bin("2", 8, 4), Bin("5-8", 22, 3)]


def test_a_funnel_has_the_widths_of_its_documents():
    read = StageAccount(Amount(10, 10), Amount(8, 8), {"empty": Amount(2, 2)})
    route = StageAccount(Amount(8, 8), Amount(4, 4), {"no_output": Amount(4, 4)})
    shown = funnels({"read": {"a": read, "b": read}, "route": {"a": route, "b": route}})
    assert list(shown) == ["", "a", "b"] and shown[""][0].account.given.documents == 20
    assert [(step.top, step.bottom, step.rules) for step in shown["a"]] == [
        (1.0, 0.8, [("empty", 2)]),
        (0.8, 0.4, [("no_output", 4)]),
    ]


def test_sizes_of_groups_are_summed_over_tasks(tmp_path):
    for task, keys in enumerate(([1, 1, 2, 3, 3, 3], [7, 7], [5])):
        save_array(tmp_path / SIZES / f"exact_{task}.npy", cluster_sizes(np.array(keys)))
    assert read_cluster_sizes(tmp_path, "exact") == {2: 2, 3: 1} and read_cluster_sizes(tmp_path, "url") == {}
