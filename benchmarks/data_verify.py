"""The rate of `megatron-sky data verify` against plain sequential reading of the same file, page cache dropped.

python benchmarks/data_verify.py [--megabytes 1000]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from megatron_sky.data.tokens.indexed import bin_path, idx_path
from megatron_sky.data.tokens.meta import DocumentCounts, TokenizerRecord
from megatron_sky.data.tokens.scan import describe
from megatron_sky.data.tokens.verify import verify
from megatron_sky.data.tokens.writer import IndexedWriter


def make_cold(path: Path) -> None:
    """Ask the system to drop a file's pages."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(8 << 20)
        while file.readinto(buffer):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        prefix = Path(folder) / "a"
        rng = np.random.default_rng(1)
        with IndexedWriter(prefix, np.uint16) as writer:
            for _ in range(args.megabytes // 20):
                tokens = rng.integers(0, 65_000, size=10_000_000, dtype=np.uint16)
                tokens[999::1000] = 2
                writer.add_documents(tokens, np.full(10_000, 1000))
        count = writer.num_documents
        record = TokenizerRecord("none", "0" * 64, 65_000, 2)
        describe(prefix, record, append_eod=True, documents=DocumentCounts(count, count)).write(prefix)
        size, best = bin_path(prefix).stat().st_size / 1e6, {"read": 0.0, "verify": 0.0}
        cost = {"read": float("inf"), "verify": float("inf")}
        for _ in range(args.rounds):
            for name, work in (("read", lambda: read_through(bin_path(prefix))), ("verify", lambda: verify(prefix))):
                for path in (bin_path(prefix), idx_path(prefix)):
                    make_cold(path)
                start, used = time.perf_counter(), time.process_time()
                work()
                best[name] = max(best[name], size / (time.perf_counter() - start))
                cost[name] = min(cost[name], time.process_time() - used)
        print(
            f"sequential read {best['read']:,.0f} MB/s, verify {best['verify']:,.0f} MB/s, "
            f"ratio {best['verify'] / best['read']:.2f}; verify takes a processor second for "
            f"{size / cost['verify']:,.0f} MB"
        )


if __name__ == "__main__":
    main()
