"""Small things that several tests of the package use."""

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np

from megatron_sky.data.tokens.indexed import IndexedWriter
from megatron_sky.distributed import device


def read_texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def die(*_: object) -> None:
    """What the system does to a process that takes too much memory."""
    os._exit(9)


def write_pair(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(np.array(document, dtype=dtype))
    return prefix


def megatron_datasets(name: str) -> ModuleType:
    """`megatron.core.datasets.NAME`, imported into a process made ready for it."""
    device.setup()
    return importlib.import_module(f"megatron.core.datasets.{name}")
