"""Conversion of a Skywork-13B-shaped checkpoint against `cp -r` of the same bytes on the same disk, and its memory.

    python benchmarks/convert_13b.py /scratch/folder [--layers 52]

Writes a torch_dist checkpoint of random bf16 weights, chunk by chunk as TP2 x PP2 would, then measures, each with the
source's pages dropped from the page cache first: `cp -r`, to-hf, `cp -r` of the result, from-hf. Conversions flush to
disk before they end and prove every tensor; `cp -r` is given with and without a flush. The disk needs room for the
source twice (28 GB each with 52 layers). Everything is removed at the end, unless --keep.
"""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader import weights
from megatron_sky.config import Config, dump_config
from megatron_sky.config.schema import ModelConfig

TP, PP = 2, 2
POOL = 1 << 26  # random values drawn once; every tensor begins elsewhere in them


def main() -> None:
    arguments = parse()
    folder = arguments.folder
    source, copy, hf, back = (folder / name for name in ("source", "copy", "hf", "back"))
    folder.mkdir(parents=True, exist_ok=True)
    config = recipe(arguments.layers)
    if not source.exists():
        write_source(source, config)
    size = sum(each.stat().st_size for each in source.iterdir())
    print(f"source: {arguments.layers} layers, {size / 1e9:.2f} GB, {shutil.disk_usage(folder).free / 1e9:.0f} GB free")
    results = [measure_copy(source, copy), measure("to-hf", ["to-hf", source, hf], source)]
    if not arguments.keep:
        shutil.rmtree(source)
    results += [measure_copy(hf, copy), measure("from-hf", ["from-hf", hf, back], hf)]
    for plain, ours in ((results[0], results[1]), (results[2], results[3])):
        ratio, flushed = ours["seconds"] / plain["seconds"], ours["seconds"] / plain["seconds_with_flush"]
        print(f"{ours['name']}: {ratio:.2f} x cp -r, {flushed:.2f} x cp -r with flush, peak {ours['peak_gib']:.2f} GiB")
    if not arguments.keep:
        shutil.rmtree(hf)
        shutil.rmtree(back)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=52)
    parser.add_argument("--keep", action="store_true", help="keep the files")
    return parser.parse_args()


def recipe(layers: int) -> Config:
    return Config.model_validate(
        {
            "model": {"preset": "skywork_13b", "num_layers": layers},
            "schedule": {"lr": 6e-4},
            "train": {"run_dir": "none", "tokens": "1T", "global_batch_size": 4096},
        }
    )


def write_source(folder: Path, config: Config) -> None:
    """One file for each of the TP x PP ranks, its chunks as megatron-core cuts them."""
    temporary = folder.with_name("source.tmp")
    temporary.mkdir()
    pool = torch.from_numpy(np.random.default_rng(0).standard_normal(POOL, dtype=np.float32)).bfloat16()
    entries, storage = {}, {}
    for rank in range(TP * PP):
        name = f"__{rank}_0.distcp"
        with open(temporary / name, "wb") as file:
            for key, shape, offsets, sizes in rank_chunks(config.model, rank % TP, rank // TP):
                begin = file.tell()
                count = int(np.prod(sizes))
                start = (rank * 7919 + sum(offsets) * 104_729) % (POOL // 2)
                repeated = pool[start:].repeat(-(-count // (POOL - start)))[:count]
                torch.save(repeated.reshape(sizes).clone(), file)
                entry = entries.setdefault(key, dcp.TensorStorageMetadata(bf16(), torch.Size(shape), []))
                entry.chunks.append(dcp.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                info = _StorageInfo(name, begin, file.tell() - begin)
                storage[dcp.MetadataIndex(key, torch.Size(offsets))] = info
    content = dcp.Metadata(entries, storage_data=storage, storage_meta=dcp.StorageMeta())
    (temporary / ".metadata").write_bytes(pickle.dumps(content))
    describe(temporary, config)
    temporary.rename(folder)


def bf16() -> dcp.TensorProperties:
    return dcp.TensorProperties(dtype=torch.bfloat16)


def rank_chunks(model: ModelConfig, tp: int, pp: int):
    """(key, global shape, offsets, sizes) of every chunk that a rank saves."""
    per_stage = model.num_layers // PP
    if pp == 0:
        yield vocabulary_chunk(weights.WORD_EMBEDDING, model, tp)
    for name, shape in weights.layer(model).items():
        for layer in range(pp * per_stage, (pp + 1) * per_stage):
            for first, sizes in layer_chunks(name, shape, tp):
                key = f"{weights.LAYERS}{name}"
                yield key, (model.num_layers, *shape), (layer, *first), (1, *sizes)
    if pp == PP - 1:
        yield vocabulary_chunk(weights.OUTPUT_LAYER, model, tp)
        if tp == 0:
            yield "decoder.final_layernorm.weight", (model.hidden_size,), (0,), (model.hidden_size,)


def vocabulary_chunk(key: str, model: ModelConfig, tp: int):
    rows = model.padded_vocab_size // TP
    return key, (model.padded_vocab_size, model.hidden_size), (tp * rows, 0), (rows, model.hidden_size)


def layer_chunks(name: str, shape: tuple[int, ...], tp: int):
    if len(shape) == 1:
        yield from [((0,), shape)] if tp == 0 else []
    elif name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        yield (0, tp * shape[1] // TP), (shape[0], shape[1] // TP)
    elif name.endswith("linear_fc1.weight"):  # gate and up are cut one by one
        half = shape[0] // 2
        for start in (0, half):
            yield (start + tp * half // TP, 0), (half // TP, shape[1])
    else:
        yield (tp * shape[0] // TP, 0), (shape[0] // TP, shape[1])


def describe(folder: Path, config: Config) -> None:
    (folder / "config.yaml").write_text(dump_config(config))
    state = {"progress": {"step": 1, "consumed_samples": 1, "consumed_tokens": 4096}, "data": {}, "layout": "TP2 PP2"}
    (folder / "train_state.json").write_text(json.dumps(state))
    records = store.hash_files(folder, store.files_of(folder), "xxh3")
    (folder / store.MANIFEST).write_text(json.dumps(store.manifest_of(1, records)))


def forget_pages(folder: Path) -> None:
    """Drops the folder from the page cache, so that everyone reads it from the disk."""
    os.sync()
    for each in folder.iterdir():
        handle = os.open(each, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure_copy(source: Path, copy: Path) -> dict:
    forget_pages(source)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(copy)], check=True)
    seconds = time.perf_counter() - start
    os.sync()
    flushed = time.perf_counter() - start
    shutil.rmtree(copy)
    print(f"cp -r {source.name}: {seconds:.1f} s, with flush {flushed:.1f} s", flush=True)
    return {"name": "cp", "seconds": seconds, "seconds_with_flush": flushed}


def measure(name: str, verb: list, source: Path) -> dict:
    """Runs the verb in a process of its own, whose peak resident memory is asked for until it ends: what the kernel
    tells at its end is this process's where that is more."""
    forget_pages(source)
    start, peak, ended = time.perf_counter(), 0.0, 0
    process = subprocess.Popen([sys.executable, "-m", "megatron_sky", "convert", *map(str, verb)])
    while not ended:
        peak = max(peak, peak_gib(process.pid))
        time.sleep(0.02)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{name} failed")
    processor = usage.ru_utime + usage.ru_stime
    print(f"{name}: {seconds:.1f} s, {processor:.1f} s of processor time, peak {peak:.2f} GiB", flush=True)
    return {"name": name, "seconds": seconds, "peak_gib": peak}


def peak_gib(pid: int) -> float:
    """The most memory that the process has held so far; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM:")), 0.0)


if __name__ == "__main__":
    main()
