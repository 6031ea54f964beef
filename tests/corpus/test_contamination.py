import json

import pytest

from megatron_sky.corpus.contamination import BenchmarkIndex
from megatron_sky.corpus.recipe import DecontaminationConfig
from megatron_sky.errors import ConfigError

ENGLISH = "a train leaves the first station at nine with forty two people and seven more get in"
CHINESE = "一列火车九点从第一站出发车上有四十二个人每一站都有七个人上车请问到终点的时候车上一共有多少人"


@pytest.fixture
def config(tmp_path):
    def made(name, *rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"name": name, "paths": [str(path)], "keys": ["question"]}

    return made


def test_shared_n_grams_are_told_by_benchmark(config, tmp_path):
    benchmarks = [
        config("trains", {"question": ENGLISH}, {"question": "too short"}),
        config("火车.zh", {"question": CHINESE}),
    ]
    benchmarks[1]["name"] = "trains_zh"
    BenchmarkIndex.build(DecontaminationConfig.model_validate({"benchmarks": benchmarks})).save(tmp_path / "index.npz")
    index = BenchmarkIndex.load(tmp_path / "index.npz")
    assert index.benchmark_in(f"We asked: {ENGLISH.upper()}! And so on.") == "trains"
    assert index.benchmark_in(f"题目：{CHINESE}。") == "trains_zh"
    assert index.benchmark_in("a train leaves the first station at nine with other people") is None
    assert (index.num_items, index.num_passed_over) == ((2, 1), (1, 0))


def test_all_files_that_can_not_be_used_are_told(config, tmp_path):
    benchmarks = [config("one", {"answer": "x"}), {"name": "two", "paths": [str(tmp_path / "none.jsonl")]}]
    with pytest.raises(ConfigError) as raised:
        BenchmarkIndex.build(DecontaminationConfig.model_validate({"benchmarks": benchmarks}))
    assert "one.jsonl:1 has no text" in str(raised.value) and "none.jsonl" in str(raised.value)
