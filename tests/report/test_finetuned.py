"""What a report says of fine-tuning: the share that is trained, held-out losses, and a preference's margin."""

import pytest

from megatron_sky.config import dump_config
from megatron_sky.config.schema import Config
from megatron_sky.model.flops import lora_parameters, num_parameters
from megatron_sky.monitor.metrics import Preference, ValidationRecord
from megatron_sky.report.finetuned import read_finetuned, tuning_figures
from tests.config.recipes import BASE


def validation(step, loss, margin=None):
    preference = None
    if margin is not None:
        preference = Preference(reward_chosen=margin, reward_rejected=0.0, margin=margin, accuracy=0.75)
    return ValidationRecord(
        step=step, consumed_tokens=step, set="a", lm_loss=loss, tokens=8, seconds=1.0, preference=preference
    )


def figures(tmp_path, finetune, records):
    config = Config.model_validate({**BASE, "finetune": finetune})
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    notes: list[str] = []
    path = tmp_path / "config.yaml"
    finetuned = read_finetuned(path, path.read_text(encoding="utf-8"), notes)
    assert not notes
    return config, {figure.name: figure for figure in tuning_figures(finetuned, records)}


def test_adapters_and_the_best_loss(tmp_path):
    finetune = {"base": "b", "lora": {"rank": 4}}
    config, told = figures(tmp_path, finetune, [validation(0, 3.0), validation(10, 1.0), validation(20, 2.0)])
    count = lora_parameters(config.model, config.finetune.lora)
    assert (
        told["Held-out answer loss"].value == "1.0000"
        and "at step 10; 3.0000 at step 0" in told["Held-out answer loss"].note
    )
    assert told["Trained"].value == f"{count / (num_parameters(config.model) + count):.2%}"


def test_a_preference(tmp_path):
    _, told = figures(tmp_path, {"base": "b", "dpo": {}}, [validation(0, 0.7, 0.0), validation(5, 0.3, 2.0)])
    assert told["Trained"].value == "100%" and told["Held-out loss of pairs"].value == "0.3000"
    assert told["Reward margin"].value == "2.000" and told["Reward margin"].note == "held-out; 0.000 at step 0"
    assert told["Preference accuracy"].value == "75.0%"


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, 0), ("model: [", 0), (dump_config(Config.model_validate(BASE)), 0), ("finetune: {base: b, other: 1}", 1)],
)
def test_another_run_has_none(tmp_path, content, told):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    notes: list[str] = []
    assert read_finetuned(tmp_path / "config.yaml", content, notes) is None and len(notes) == told
    assert tuning_figures(None, [validation(0, 1.0)]) == []
