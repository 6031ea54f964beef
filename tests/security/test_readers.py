"""Files that are not what they should be are read, or refused in words: for each kind, small valid files damaged.

The suite tries a few dozen of each. More, and the whole report page with them, by the number of examples:

    MEGATRON_SKY_FUZZ=5000 pytest -n 0 tests/security/test_readers.py -k metadata
"""

import contextlib
import io
import logging
import os
import warnings
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.security import kinds
from tests.security.kinds import KINDS, told
from tests.slow import slow_except

EXAMPLES = int(os.environ.get("MEGATRON_SKY_FUZZ", "30"))
COSTLY = (
    "run",
    "jobs",
    "metrics",
    "config",
    "loss",
    "tasks",
    "documents",
    "hf_config",
    "generation",
    "hf_tokenizer_config",
)
"""Kinds that take a second or more for ten examples."""
QUICK = (
    *("recipe", "site", "meta", "idx", "metadata", "megatron", "latest", "torch_bin"),
    *("jsonl", "gz", "zst", "parquet", "published"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("tokenizers")
    pytest.importorskip("pyarrow")
    pytest.importorskip("zstandard")
    return kinds.make(tmp_path_factory.mktemp("readers") / "files")


@pytest.fixture(autouse=True)
def quiet():
    """Warnings of skipped records and files, by the thousand."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def read(kind: kinds.Kind, folder: Path, content: bytes) -> None:
    """Reads the material with `content` in place of the kind's file, which is put back."""
    path = folder / kind.name
    valid = path.read_bytes()
    path.write_bytes(content)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            told(lambda: kind.read(folder))
    finally:
        path.write_bytes(valid)


def test_a_valid_file_is_read(folder):
    """Else damage would hide behind another refusal."""
    kinds.refusals.clear()
    for kind in {(kind.read): kind for kind in KINDS.values()}.values():
        kind.read(folder)
    assert not kinds.refusals


@pytest.mark.parametrize("name", slow_except(KINDS, *QUICK))
def test_a_damaged_file_is_read_or_refused(name, folder):
    kind = KINDS[name]
    valid = (folder / kind.name).read_bytes()
    count = max(5, EXAMPLES // 3) if name in COSTLY else EXAMPLES

    @hypothesis.settings(max_examples=count, derandomize=EXAMPLES == 30, deadline=None, database=None)
    @hypothesis.given(st.randoms(use_true_random=False))
    def damaged(rng) -> None:
        read(kind, folder, kind.damage(valid, rng))

    damaged()
