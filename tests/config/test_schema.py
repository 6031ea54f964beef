"""The recipe's sections: frozen, described, and as a JSON schema."""

import json

import pytest

from megatron_sky.config import Config, json_schema, load_config
from megatron_sky.config.schema import Section
from tests.config.recipes import BASE


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
