"""A small corpus, a tokenizer of 600 tokens and token files, made once for all tests of the package."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_sky.data.synthetic import write_corpus
from megatron_sky.tokenizer.kinds import Tokenizer
from megatron_sky.tokenizer.train import train_tokenizer
from tests.data.helpers import read_texts

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@dataclass(frozen=True)
class Corpus:
    """`files[split][domain]` are JSONL files; `tokenizer_path` holds `tokenizer`."""

    folder: Path
    files: dict[str, dict[str, Path]]
    tokenizer: Tokenizer
    tokenizer_path: Path


@pytest.fixture(scope="session")
def text_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    files = write_corpus(folder, seed=7, train_bytes=200_000, heldout_bytes=8_000)
    path = folder / "tokenizer.model"
    texts = [text for file in files["train"].values() for text in read_texts(file)]
    return Corpus(folder, files, train_tokenizer(texts, path, 600), path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    return SHARED
