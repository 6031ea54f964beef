"""Index files that Megatron-LM has built (`--data-cache-path`), read and never written.

    <md5>-GPTDataset-train-description.txt     what they are of, as JSON
    <md5>-GPTDataset-train-document_index.npy  [epochs x documents]: documents in their order
    <md5>-GPTDataset-train-sample_index.npy    [samples + 1, 2]: where in it a sample begins: element, token
    <md5>-GPTDataset-train-shuffle_index.npy   [samples]: the order of the samples

The md5 is over the whole description, with the tokenizer's, which the order does not depend on. So descriptions are
compared by what decides the order: the file, the number of samples, the seed, the sequence length, the documents.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_sky.errors import DataError
from megatron_sky.files import read_json
from megatron_sky.log import get_logger

if TYPE_CHECKING:
    from megatron.core.datasets.gpt_dataset import GPTDataset

log = get_logger(__name__)
DESCRIPTION, INDICES = "-GPTDataset-train-description.txt", ("document", "sample", "shuffle")
_FIX = "leave data.megatron.cache out: the index is built then"


def dataset_class(folder: str) -> "type[GPTDataset]":
    """A GPTDataset that takes its training indices from `folder` where they are there, and builds them elsewhere."""
    from megatron.core.datasets.gpt_dataset import GPTDataset

    if not os.path.isdir(folder):
        raise DataError(f"data.megatron.cache = {folder}: is no folder\n  fix: give Megatron-LM's --data-cache-path")

    class CachedGPTDataset(GPTDataset):
        def _build_document_sample_shuffle_indices(self):
            found = find_indices(Path(folder), self.unique_identifiers)
            if found is None:
                log.info("%s: data.megatron.cache has no index of it for this run; it is built", self.dataset_path)
                return super()._build_document_sample_shuffle_indices()
            return read_indices(found)

    return CachedGPTDataset


def find_indices(folder: Path, wanted: Mapping) -> list[Path] | None:
    """The three files of what `wanted`, a GPTDataset's identifiers, describes; None where they are not all there."""
    for path in sorted(folder.glob(f"*{DESCRIPTION}")):
        try:
            said = read_json(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: can't be read as JSON: {error}\n  fix: {_FIX}") from None
        if isinstance(said, dict) and _deciding(said) == _deciding(wanted):
            files = [Path(f"{str(path).removesuffix('description.txt')}{name}_index.npy") for name in INDICES]
            return files if all(file.is_file() for file in files) else None
    return None


def _deciding(said: Mapping) -> tuple:
    """What of a description decides the order. Of the split only the training's part of the documents."""
    path, parts = said.get("dataset_path"), said.get("split_matrix")
    part = parts[0] if isinstance(parts, list) and parts else None
    return (
        os.path.realpath(path) if isinstance(path, str) else None,
        *(said.get(name) for name in ("num_samples", "random_seed", "sequence_length")),
        tuple(part) if isinstance(part, list | tuple) else None,
    )


def read_indices(files: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The document, sample and shuffle index, mapped into memory. Raises DataError where they do not fit together."""
    arrays = []
    for path in files:
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: can't be read: {error}\n  fix: {_FIX}") from None
    documents, samples, shuffle = arrays
    whole = all(array.dtype.kind in "iu" for array in arrays) and [array.ndim for array in arrays] == [1, 2, 1]
    if not whole or samples.shape != (len(shuffle) + 1, 2) or samples[-1, 0] >= len(documents):
        raise DataError(
            f"{files[1]}: {samples.shape} sample bounds do not fit {documents.shape} documents and {shuffle.shape} "
            f"samples in the files beside it\n  fix: {_FIX}"
        )
    return documents, samples, shuffle
