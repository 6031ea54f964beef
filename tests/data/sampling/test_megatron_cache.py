"""Megatron-LM's own index files, as its builder writes them, are read and never written."""

import json
import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_sky.config.schema import DataConfig, MegatronOrder
from megatron_sky.data.sampling.megatron_cache import DESCRIPTION, dataset_class, find_indices, read_indices
from megatron_sky.data.sampling.megatron_order import MegatronTrainData
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.distributed import device
from megatron_sky.errors import DataError
from tests.data.helpers import megatron_datasets, write_pair

SEQ, SPLIT = 8, "80,20"


@pytest.fixture(autouse=True)
def ready():
    device.setup()


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> Path:
    """The cache folder of Megatron-LM's run on sources a and b."""
    for prefix, start in (("a", 0), ("b", 5000)):
        write_pair(tmp_path / prefix, [list(range(start + 10 * n, start + 10 * n + 10)) for n in range(60)])
    gpt, builder = megatron_datasets("gpt_dataset"), megatron_datasets("blended_megatron_dataset_builder")
    tokenizer = SimpleNamespace(eod=5999, pad=-1, vocab_size=6000, unique_identifiers=OrderedDict({"class": "Its"}))
    settings = gpt.GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ,
        blend=([str(tmp_path / "a"), str(tmp_path / "b")], [3.0, 1.0]),
        split=SPLIT,
        path_to_cache=str(tmp_path / "theirs"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "get_rank", lambda: 0)  # it writes on the first rank
        builder.BlendedMegatronDatasetBuilder(gpt.GPTDataset, [150, 0, 0], lambda: True, settings).build()
    return tmp_path / "theirs"


def ours(tmp_path, cache: Path | None, **more) -> MegatronTrainData:
    config = DataConfig(
        train=tuple({"name": n, "path": str(tmp_path / n), "weight": w} for n, w in (("a", 3.0), ("b", 1.0))),
        sampling="megatron",
        megatron=MegatronOrder(split=SPLIT, cache=None if cache is None else str(cache)),
    )
    sources = [open_source(each.path, vocab_size=6000) for each in config.train]
    given = {"seq_length": SEQ, "vocab_size": 6000, "total_samples": 150, "cache": tmp_path / "own"} | more
    return MegatronTrainData(config, sources, **given)


def test_the_samples_are_those_of_its_files(theirs, tmp_path, monkeypatch):
    plain = ours(tmp_path, None)
    before = {path: path.stat().st_mtime_ns for path in theirs.iterdir()}
    assert sum(path.name.endswith(DESCRIPTION) for path in before) == 2
    with monkeypatch.context() as patch:
        gpt = megatron_datasets("gpt_dataset").GPTDataset
        patch.delattr(gpt, "_build_document_sample_shuffle_indices")  # nothing is built
        data = ours(tmp_path, theirs)
    assert torch.equal(data.read(range(150)).tokens, plain.read(range(150)).tokens)
    assert {path: path.stat().st_mtime_ns for path in theirs.iterdir()} == before
    assert data.plan.fingerprint() == plain.plan.fingerprint()
    assert plain.continue_from(data.plan.fingerprint(), 10) == ""


@pytest.mark.parametrize("change", [{"total_samples": 149}, {"seq_length": 4}])
def test_another_order_is_built(change, theirs, tmp_path):
    assert torch.equal(
        ours(tmp_path, theirs, **change).read(range(100)).tokens, ours(tmp_path, None, **change).read(range(100)).tokens
    )


def test_what_is_looked_for(theirs, tmp_path):
    path = next(path for path in sorted(theirs.iterdir()) if path.name.endswith(DESCRIPTION))
    said = json.loads(path.read_text())
    assert find_indices(theirs, said | {"tokenizer": "another", "split": "4,1"}) is not None
    os.symlink(tmp_path, tmp_path / "elsewhere")
    name = Path(said["dataset_path"]).name
    assert find_indices(theirs, said | {"dataset_path": str(tmp_path / "elsewhere" / name)}) is not None
    for change in ({"random_seed": 1}, {"dataset_path": "c"}, {"split_matrix": [[0, 0.5]]}, {"num_samples": 5}):
        assert find_indices(theirs, said | change) is None
    (found, *_) = find_indices(theirs, said)
    found.unlink()
    assert find_indices(theirs, said) is None


def test_what_is_damaged_is_named(theirs, tmp_path):
    with pytest.raises(DataError, match=r"data\.megatron\.cache = nowhere: is no folder"):
        dataset_class("nowhere")
    files = [next(theirs.glob(f"*{name}_index.npy")) for name in ("document", "sample", "shuffle")]
    np.save(files[2], np.arange(3))
    with pytest.raises(DataError, match="sample bounds do not fit"):
        read_indices(files)
    files[0].write_bytes(b"no array")
    with pytest.raises(DataError, match=r"document_index\.npy: can't be read"):
        read_indices(files)
    for description in theirs.glob(f"*{DESCRIPTION}"):
        description.write_text("{")
    with pytest.raises(DataError, match="can't be read as JSON"):
        ours(tmp_path, theirs)
