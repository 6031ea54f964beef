"""Small things that several tests of the package use."""

import importlib
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from megatron_sky.data.tokens.indexed import IndexHeader, bin_path, idx_path
from megatron_sky.data.tokens.writer import IndexedWriter
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


def write_with_megatron(prefix, documents, dtype):
    import torch

    indexed = megatron_datasets("indexed_dataset")
    builder = indexed.IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for document, lengths in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), lengths)
    builder.finalize(str(idx_path(prefix)))


def write_other_index(prefix: Path, sequences: list[tuple[int, int]], dtype: type = np.uint16) -> Path:
    """Another index for the tokens that `prefix` has, of documents (first token, number of tokens), as other tools
    filter or shuffle a pair."""
    starts, lengths = np.array(sequences, np.int64).T
    parts = [
        IndexHeader(np.dtype(dtype), len(sequences), len(sequences) + 1).pack(),
        lengths.astype(np.int32).tobytes(),
        (starts * np.dtype(dtype).itemsize).tobytes(),
        np.arange(len(sequences) + 1).tobytes(),
    ]
    idx_path(prefix).write_bytes(b"".join(parts))
    return prefix


def killed_at(step, work):
    """Does `work` in a child that is gone, without a word, before its `step`-th change of a name in a folder."""

    def child():
        left = [step]

        def count(event, arguments):
            if event in ("os.rename", "os.remove"):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL
