import numpy as np
import pytest
import torch

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.megatron_order import MegatronTrainData
from megatron_sky.distributed import device
from megatron_sky.errors import ConfigError, DataError

from .helpers import write_pair

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
    return MegatronTrainData(config.model_copy(update=given.pop("change", {})), **given)


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
    assert again.continue_from(first.plan.fingerprint(), 50) is False
    with pytest.raises(ConfigError, match="can't change in mid-run"):
        make(tmp_path, "a").continue_from(first.plan.fingerprint(), 50)


def test_what_this_order_does_not_know_is_told(tmp_path):
    ramp = DataConfig(train=({"name": "a", "path": "a", "weight": {"start": 1, "end": 2}},)).train
    with pytest.raises(ConfigError, match="is a ramp"):
        make(tmp_path, "a", change={"train": ramp})
    with pytest.raises(ConfigError, match="document_mask"):
        make(tmp_path, "a", change={"document_mask": True})
    with pytest.raises(DataError, match="must be in"):
        make(tmp_path, "ab", vocab_size=5000).read(np.arange(150))
