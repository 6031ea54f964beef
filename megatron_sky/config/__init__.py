"""Recipes: schema, loading and checks. Imports neither torch nor megatron."""

from megatron_sky.config.load import dump_config, load_config
from megatron_sky.config.schema import Config, json_schema

__all__ = ["Config", "dump_config", "json_schema", "load_config"]
