"""The recipe's `model` section from what another program's files say, with an error that names them."""

from pydantic import ValidationError

from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError


def build_model(fields: dict, where: object) -> ModelConfig:
    """The ModelConfig of `fields`, or a CheckpointError naming `where` they come from and what stands in the way."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, each['loc']))} = {each['input']!r}: {each['msg']}" for each in error.errors()]
        raise CheckpointError(f"{where}: describes no model:\n" + "\n".join(lines)) from error
