"""Samples per second of the loader against megatron-core's GPTDataset, same tokens, random access, one process.

    python benchmarks/data_loader.py [--seq-length 4096] [--tokens 50000000]

The two are read in turns, three times each, and the best of each is taken, so that a busy machine slows both alike.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.loader import TrainData
from megatron_sky.data.sampling.mixture import SessionMixture
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.data.tokens.writer import IndexedWriter


def write_pairs(folder: Path, num_tokens: int, num_sources: int) -> list[str]:
    """Sources of random ids in documents of about 1,000 tokens."""
    rng = np.random.default_rng(1)
    prefixes = []
    for number in range(num_sources):
        prefixes.append(str(folder / f"source{number}"))
        with IndexedWriter(prefixes[-1], np.uint16) as writer:
            lengths = rng.integers(200, 1800, size=num_tokens // num_sources // 1000)
            writer.add_documents(rng.integers(0, 65_000, size=int(lengths.sum()), dtype=np.uint16), lengths)
    return prefixes


def build_theirs(prefixes: list[str], seq_length: int, samples: int):
    """GPTDataset, blended where there are several sources."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    weights = [1.0] * len(prefixes) if len(prefixes) > 1 else None
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=seq_length,
        blend_per_split=[(prefixes, weights), None, None],
        tokenizer=SimpleNamespace(vocab_size=65_000, eod=0, pad=-1, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def rate(read, numbers: list[int]) -> float:
    """Samples per second of one pass."""
    start = time.process_time()
    for number in numbers:
        read(number)
    return len(numbers) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--sources", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefixes = write_pairs(Path(folder), args.tokens, args.sources)
        samples = args.tokens // args.seq_length // 2
        theirs = build_theirs(prefixes, args.seq_length, samples)
        config = DataConfig(train=tuple({"name": Path(p).name, "path": p} for p in prefixes))
        sources = [open_source(prefix, vocab_size=65_000) for prefix in prefixes]
        mixture = [SessionMixture(0, samples)]
        ours = TrainData(config, sources, seq_length=args.seq_length, vocab_size=65_000, sessions=mixture)
        numbers = random.Random(0).choices(range(samples), k=3000)
        best = {"ours": 0.0, "theirs": 0.0}
        for _ in range(3):
            best["ours"] = max(best["ours"], rate(lambda number: ours.read((number,)), numbers))
            best["theirs"] = max(best["theirs"], rate(lambda number: theirs[number], numbers))
        print(
            f"{args.sources} source(s), sequence {args.seq_length}: ours {best['ours']:,.0f} samples/s, GPTDataset "
            f"{best['theirs']:,.0f}, ratio {best['ours'] / best['theirs']:.2f} (processor time)"
        )


if __name__ == "__main__":
    main()
