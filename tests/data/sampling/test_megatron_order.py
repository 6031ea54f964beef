import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_sky.config.schema import DataConfig, MegatronOrder
from megatron_sky.data.loader import TrainData
from megatron_sky.data.sampling.megatron_order import MegatronTrainData
from megatron_sky.data.sampling.mixture import SessionMixture
from megatron_sky.data.tokens.indexed import CODE_OF_DTYPE
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.distributed import device
from megatron_sky.errors import ConfigError, DataError
from tests.data.helpers import megatron_datasets, write_pair, write_with_megatron

SEQ = 8


@pytest.fixture(autouse=True)
def ready():
    device.setup()


def make(tmp_path, names, **more):
    write_pair(tmp_path / "a", [list(range(0, 500)), list(range(500, 1000))])
    write_pair(tmp_path / "b", [list(range(5000, 5400))])
    weights = {"a": 3.0, "b": 1.0}
    config = DataConfig(
        train=tuple({"name": n, "path": str(tmp_path / n), "weight": weights[n]} for n in names), sampling="megatron"
    )
    given = {"seq_length": SEQ, "vocab_size": 6000, "total_samples": 150, "cache": tmp_path / "cache"} | more
    config = config.model_copy(update=given.pop("change", {}))
    return MegatronTrainData(config, opened(config), **given)


def opened(config):
    return [open_source(each.path, vocab_size=6000) for each in config.train]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_samples_are_megatrons(tmp_path, names):
    data = make(tmp_path, names)
    batch = data.read(range(150))
    for number in range(150):
        expected = data._dataset[number]
        assert torch.equal(batch.tokens[number], expected["tokens"])
        assert torch.equal(batch.labels[number], expected["labels"])
    assert sum(data.plan.consumed(150)) == 150
    from_b = int((batch.tokens[:, 0] >= 5000).sum())
    assert data.plan.consumed(150)[1:] == [from_b] * (len(names) - 1)


def test_the_order_can_be_built_again(tmp_path):
    first, again = make(tmp_path, "ab"), make(tmp_path, "ab")
    assert torch.equal(first.read(range(50)).tokens, again.read(range(50)).tokens)
    assert again.continue_from(first.plan.fingerprint(), 50) == ""


@pytest.mark.parametrize(
    "names, change, rule",
    [
        ("a", {}, r"data\.train: has other sources, .*: a 3 \(1,000 tokens\), b 1 \(400 tokens\)"),
        ("ab", {"total_samples": 200}, r"train\.tokens: makes 200 samples .*, 150 when the run began"),
        ("ab", {"seq_length": 4}, r"model\.seq_length: was 8"),
        ("ab", {"change": {"seed": 5}}, r"data\.seed: was 1234"),
    ],
)
def test_what_decides_the_order_can_not_change(tmp_path, names, change, rule):
    saved = json.loads(json.dumps(make(tmp_path, "ab").plan.fingerprint()))
    with pytest.raises(ConfigError, match=rule) as failure:
        make(tmp_path, names, **change).continue_from(saved, 50)
    assert len(failure.value.problems) == 1 and "init_from" in str(failure.value)


def test_a_run_changes_neither_into_this_order_nor_out_of_it(tmp_path):
    megatron = make(tmp_path, "ab")
    config = DataConfig(train=({"name": "a", "path": str(tmp_path / "a")},), max_epochs=100)
    planned = TrainData(config, opened(config), seq_length=SEQ, vocab_size=6000, sessions=[SessionMixture(0, 150)])
    for data, other, was, now in ((megatron, planned, "plan", "megatron"), (planned, megatron, "megatron", "plan")):
        rule = rf"data\.sampling = '{now}': was {was} when the run began(.*\n)*.*fix: set data\.sampling={was}"
        with pytest.raises(ConfigError, match=rule):
            data.continue_from(json.loads(json.dumps(other.plan.fingerprint())), 50)
        with pytest.raises(ConfigError, match="without an order of samples"):
            data.continue_from({}, 0)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_run_that_stepped_over_samples_goes_on_with_the_first(tmp_path, names):
    data = make(tmp_path, names)
    size = len(data._dataset)
    assert size >= 150
    past = data.read(range(size - 2, size + 20))
    assert torch.equal(past.tokens[2:], data.read(range(20)).tokens)
    given = [data.plan.consumed(count) for count in (size, 20, size + 20, 2 * size)]
    assert given[2] == [a + b for a, b in zip(given[0], given[1], strict=True)]
    assert given[3] == [2 * count for count in given[0]] and sum(given[2]) == size + 20


def test_an_id_beyond_the_vocabulary_is_told(tmp_path):
    with pytest.raises(DataError, match="must be in"):
        make(tmp_path, "ab", vocab_size=5000).read(np.arange(150))


PARTS = {
    "split": {"split": "60,30,10"},
    "sizes": {"weights": "sizes"},
    "split_sizes": {"split": "50,50", "weights": "sizes"},
    "longer": {"num_samples": 400},
    "surplus": {"surplus": 0.5},
}


@pytest.mark.parametrize("name", PARTS)
def test_what_else_decides_the_order(tmp_path, name):
    """Against megatron-core's own builder, given what Megatron-LM gives it."""
    part = MegatronOrder(**PARTS[name])
    for prefix, start in (("a", 0), ("b", 5000)):
        write_pair(tmp_path / prefix, [list(range(start + 10 * n, start + 10 * n + 10)) for n in range(60)])
    given = tuple({"name": n, "path": str(tmp_path / n), "weight": w} for n, w in (("a", 3.0), ("b", 1.0)))
    config = DataConfig(train=given, sampling="megatron", megatron=part)
    samples = 60 if part.weights == "given" else 40
    data = MegatronTrainData(
        config, opened(config), seq_length=SEQ, vocab_size=6000, total_samples=samples, cache=tmp_path / "cache"
    )
    gpt, builder = megatron_datasets("gpt_dataset"), megatron_datasets("blended_megatron_dataset_builder")
    settings = gpt.GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ,
        blend=([str(tmp_path / "a"), str(tmp_path / "b")], [3.0, 1.0] if part.weights == "given" else None),
        split=part.split or "100,0,0",
        mid_level_dataset_surplus=part.surplus,
        tokenizer=SimpleNamespace(vocab_size=6000, eod=5999, pad=-1, unique_identifiers={}),
        **dict.fromkeys(
            ("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "create_attention_mask"), False
        ),
    )
    sizes = [part.num_samples or samples, 8, 8]
    theirs = builder.BlendedMegatronDatasetBuilder(gpt.GPTDataset, sizes, lambda: True, settings).build()[0]
    assert torch.equal(data.read(range(samples)).tokens, torch.stack([theirs[n]["tokens"] for n in range(samples)]))
    if part.split:
        used = float(part.split.split(",")[0]) / 100
        assert data.read(range(samples)).tokens.unique().numel() <= 2 * 600 * used
        assert data.plan.epochs(samples)[0] == pytest.approx(data.plan.consumed(samples)[0] * SEQ / (600 * used - 1))


def test_a_run_from_before_the_split_was_a_part_of_the_order(tmp_path):
    """Its fingerprint says nothing of it, which is the default."""
    first = make(tmp_path, "ab")
    saved = {key: value for key, value in first.plan.fingerprint().items() if key not in MegatronOrder.model_fields}
    assert first.continue_from(saved, 50) == ""
    changed = make(tmp_path, "ab", change={"megatron": MegatronOrder(split="90,10")})
    with pytest.raises(ConfigError, match=r"data\.megatron\.split: was None when the run began"):
        changed.continue_from(saved, 50)


@pytest.mark.parametrize("dtype", CODE_OF_DTYPE, ids=str)
def test_every_dtype_of_an_index(tmp_path, dtype):
    """Equal samples of each, in both orders; of floating-point numbers megatron-core itself reads none."""
    documents = [list(range(1, 60)), list(range(60, 100))]
    tokens = {}
    for name, kind in (("int32", np.int32), ("own", dtype.type)):
        write_with_megatron(tmp_path / name, [(document, [len(document)]) for document in documents], kind)
        config = DataConfig(train=({"name": "a", "path": str(tmp_path / name), "weight": 1.0},))
        sources = [open_source(tmp_path / name, vocab_size=100)]
        plan = TrainData(config, sources, seq_length=SEQ, vocab_size=100, sessions=[SessionMixture(0, 10)])
        tokens[name] = [plan.read(range(10)).tokens]
        config = config.model_copy(update={"sampling": "megatron"})
        given = {"seq_length": SEQ, "vocab_size": 100, "total_samples": 10, "cache": tmp_path / "cache"}
        if np.dtype(kind).kind == "f":
            with pytest.raises(DataError, match=rf"own\.idx: says {dtype}, megatron-core reads integers alone"):
                MegatronTrainData(config, sources, **given)
        else:
            tokens[name].append(MegatronTrainData(config, sources, **given).read(range(10)).tokens)
    for ours, plain in zip(tokens["own"], tokens["int32"], strict=False):
        assert ours.dtype == plain.dtype and torch.equal(ours, plain)
