"""Time and memory to the first batch of a 14-source mixture of 3.2 T tokens, against megatron-core's builders.

    python benchmarks/data_first_batch.py ours [--tokens 3.2e12] [--document 100000]
    python benchmarks/data_first_batch.py theirs --tokens 3.2e10

The .bin files are sparse; the .idx files are real, with documents of `--document` tokens each (at 1,000 tokens a
document an index of 3.2 T tokens takes 64 GB). "Start-up" is after the imports.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.sampling.mixture import SessionMixture
from megatron_sky.data.tokens.indexed import IndexHeader, bin_path, idx_path
from megatron_sky.data.tokens.sources import open_source

# Shares of the report's stage-1 mixture, in per mille: English web, books, papers, encyclopedia, miscellany; Chinese
# web, social posts, encyclopedia, miscellany; other languages' encyclopedia; code. Web and code are cut in two: 14.
SHARES = (250, 148, 36, 30, 5, 29, 200, 104, 55, 8, 31, 24, 50, 30)
SEQ_LENGTH = 4096
VOCAB_SIZE = 65_536


def write_sparse_pair(prefix: Path, num_tokens: int, document: int) -> None:
    """A pair of `num_tokens` zeros in documents of equal length; the tokens take no room on the disk."""
    count = max(1, num_tokens // document)
    with open(bin_path(prefix), "wb") as tokens:
        tokens.truncate(count * document * 4)
    with open(idx_path(prefix), "wb") as index:
        index.write(IndexHeader(np.dtype(np.int32), count, count + 1).pack())
        np.full(count, document, np.int32).tofile(index)
        (np.arange(count, dtype=np.int64) * document * 4).tofile(index)
        np.arange(count + 1, dtype=np.int64).tofile(index)


def memory() -> float:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(prefixes: list[Path], samples: int) -> None:
    from megatron_sky.data.loader import TrainData

    begin, before = time.perf_counter(), memory()
    config = DataConfig(
        train=tuple(
            {"name": p.name, "path": str(p), "weight": share} for p, share in zip(prefixes, SHARES, strict=True)
        )
    )
    sources = [open_source(each.path, vocab_size=VOCAB_SIZE) for each in config.train]
    mixture = [SessionMixture(0, samples)]
    data = TrainData(config, sources, seq_length=SEQ_LENGTH, vocab_size=VOCAB_SIZE, sessions=mixture)
    data.read(range(16))
    print(f"ours: first batch of 16 after {time.perf_counter() - begin:.3f} s and {memory() - before:.1f} MiB")
    begin = time.perf_counter()
    data.read(range(samples - 16, samples))
    print(f"ours: the last batch of the run after {time.perf_counter() - begin:.3f} s more")


def theirs(prefixes: list[Path], samples: int) -> None:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    begin, before = time.perf_counter(), memory()
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQ_LENGTH,
        blend_per_split=[([str(p) for p in prefixes], [float(share) for share in SHARES]), None, None],
        tokenizer=SimpleNamespace(vocab_size=VOCAB_SIZE, eod=0, pad=-1, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
    for number in range(16):
        dataset[number]
    print(f"megatron-core: first batch of 16 after {time.perf_counter() - begin:.3f} s and {memory() - before:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["ours", "theirs"])
    parser.add_argument("--tokens", type=float, default=3.2e12)
    parser.add_argument("--document", type=int, default=100_000)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        prefixes = [folder / f"source{number:02}" for number in range(len(SHARES))]
        for prefix, share in zip(prefixes, SHARES, strict=True):
            write_sparse_pair(prefix, int(args.tokens * share / 1000), args.document)
        {"ours": ours, "theirs": theirs}[args.which](prefixes, int(args.tokens * 0.9) // SEQ_LENGTH)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
