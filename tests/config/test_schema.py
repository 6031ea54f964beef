"""The recipe's sections: frozen, described, and as a JSON schema."""

import json
from pathlib import Path

import pytest
import yaml

from megatron_sky.config import Config, json_schema, load_config
from megatron_sky.config.schema import Section

BASE = {
    "model": {"preset": "tiny"},
    "schedule": {"lr": 1e-3},
    "train": {"run_dir": "runs/x", "tokens": 1000, "global_batch_size": 8},
}


@pytest.fixture
def write(tmp_path):
    def write(text: str | dict, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return path

    return write


def test_configs_are_frozen(write):
    config = load_config([write(BASE)])
    with pytest.raises(Exception, match="frozen"):
        config.train.seed = 1


def all_sections(model: type[Section]):
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield field.annotation


def test_every_field_is_described():
    for section in all_sections(Config):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no description"


def test_the_schema_is_json_and_knows_the_fields():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert "global_batch_size" in schema["$defs"]["TrainConfig"]["properties"]
