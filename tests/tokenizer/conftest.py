"""The texts and the tokenizer of the data tests, and the conversion tests' checkpoints."""

from tests.convert.conftest import hf, native
from tests.data.conftest import shared_data, text_corpus

__all__ = ["hf", "native", "shared_data", "text_corpus"]
