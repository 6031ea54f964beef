"""megatron_sky: the open training system behind Skywork-13B, on megatron-core."""

__version__ = "0.1.0"
