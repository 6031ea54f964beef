"""Texts, checkpoints and runs of the packages whose commands are tried here."""

from tests.convert.conftest import hf, native
from tests.data.conftest import text_corpus
from tests.report.conftest import write_run

__all__ = ["hf", "native", "text_corpus", "write_run"]
