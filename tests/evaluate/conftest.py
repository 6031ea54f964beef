"""Checkpoints to evaluate: the conversion tests' native ones, and their exports."""

from tests.convert.conftest import hf, native

__all__ = ["hf", "native"]
