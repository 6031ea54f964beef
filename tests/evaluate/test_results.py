"""Result files: what they hold where a name is unusual."""

import os

from megatron_sky.evaluate.leakage import judge, published, verdict_test, verdict_train
from megatron_sky.evaluate.results import LeakageResults, ModelLeakage, ModelRecord, read_leakage, write_json


def test_a_model_in_a_folder_whose_name_is_no_utf_8(tmp_path):
    losses = (published(1.0, 1.0, 1.0),)
    record = ModelRecord("model", path=os.fsdecode(b"runs/caf\xe9"))
    model = ModelLeakage(record, losses, judge(losses, verdict_test), judge(losses, verdict_train))
    write_json(LeakageResults(0.05, 0.95, None, (), (model,)), tmp_path)
    assert read_leakage(tmp_path).models[0].model.path == "runs/caf?"
