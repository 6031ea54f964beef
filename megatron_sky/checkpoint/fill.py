"""Tensors of a checkpoint read from its files into the memory that they are meant for, several files at once.

torch reads one file after another, each tensor first into memory of its own. Here a tensor on a CPU that wants whole
rows of what is stored is filled from the file at once; all others take torch's way.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, read_into
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.distributed import compat

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.planner import ReadItem


def fill_from_files() -> None:
    """Lets torch's reader of checkpoints read in this way."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader

    if getattr(FileSystemReader.read_data, "fills", False):
        return
    inherited = FileSystemReader.read_data

    def read_data(self, plan, planner):
        by_file: dict[str, list] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)

        def read_file(items: list) -> None:
            for item in sorted(items, key=lambda item: self.storage_data[item.storage_index].offset):
                if not _fill(Path(self.path), self.storage_data[item.storage_index], item, planner):
                    inherited(self, replace(plan, items=[item]), planner)

        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            list(pool.map(read_file, by_file.values()))
        return inherited(self, replace(plan, items=[]), planner)

    vars(read_data)["fills"] = True
    compat.replace_members(FileSystemReader, read_data=read_data)


def _fill(folder: Path, stored: "_StorageInfo", item: "ReadItem", planner) -> bool:
    """False where the item is left to torch. Raises CheckpointError where the file does not hold what it says."""
    from torch.distributed.checkpoint.planner import LoadItemType

    if item.type == LoadItemType.BYTE_IO or getattr(stored, "transform_descriptors", None):
        return False
    target = planner.resolve_tensor(item).detach()
    if target.device.type != "cpu" or not target.is_contiguous() or target.size() != item.lengths:
        return False
    path = folder / stored.relative_path
    archive = TorchArchive(path, stored.offset, stored.length)
    ref = archive.content()
    if not isinstance(ref, TensorRef) or not _is_rows(ref, item, target):
        return False
    name = str(item.storage_index.fqn)
    archive.tensor(ref, name)  # all of its bytes are there
    row = target[:1].nbytes if target.dim() else 0
    first = item.storage_offsets[0] if target.dim() else 0
    offset = archive.data_offset(ref) + ref.storage_offset * target.itemsize + first * row
    if target.numel():
        read_into(path, offset, _bytes_of(target), f"tensor {name}")
    planner.commit_tensor(item, target)
    return True


def _is_rows(ref: TensorRef, item: "ReadItem", target: "torch.Tensor") -> bool:
    """Whether the target is some rows of the stored tensor, in its number format."""
    starts, sizes = tuple(item.storage_offsets), tuple(item.lengths)
    return (
        f"torch.{TORCH_NAMES.get(ref.dtype)}" == str(target.dtype)
        and ref.is_contiguous
        and len(ref.shape) == len(sizes) == len(starts)
        and all(start + size <= whole for start, size, whole in zip(starts[:1], sizes, ref.shape, strict=False))
        and sizes[1:] == ref.shape[1:]
        and not any(starts[1:])
    )


def _bytes_of(tensor: "torch.Tensor"):
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()
