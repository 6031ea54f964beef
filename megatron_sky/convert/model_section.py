"""The recipe's `model` section from what another program's files say, with an error that names them."""

from pydantic import ValidationError

from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError
from megatron_sky.records import problem_of


def build_model(fields: dict, where: object) -> ModelConfig:
    """The ModelConfig of `fields`, or a CheckpointError naming `where` they come from and what stands in the way."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        lines = "".join(f"\n  {problem_of(detail)}" for detail in error.errors())
        raise CheckpointError(f"{where}: describes no model:{lines}") from error
