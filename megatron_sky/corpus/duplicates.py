"""Documents that come more than once: by content, by address, nearly. The best one stays, whatever the order.

Which is best is one total order: a held-out document before others, then by quality, then the first of the corpus. So
whatever a document loses to is kept, or has itself lost to a better one, and no group of equal documents is lost whole.

datatrove's MinHash finds pairs and joins them to clusters; ours are its n-grams (words and Chinese characters, see
`grams`) and the choice within a cluster.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from megatron_sky.corpus.grams import content_key, gram_hashes, hash_text
from megatron_sky.corpus.recipe import DuplicatesConfig, NearDuplicatesConfig
from megatron_sky.corpus.stage import Stage, save_array

KEY = np.dtype([("key", "<u8"), ("rank", "<u4"), ("index", "<u4"), ("quality", "<f4"), ("held_out", "u1")])
LOSER = np.dtype([("rank", "<u4"), ("index", "<u4"), ("rule", "u1")])
RULES = ("exact", "exact_held_out", "url", "url_held_out", "near", "near_held_out")
_KINDS = ("exact", "url")
SIZES = "cluster_sizes"
_NEVER_ASKED = "signatures are made of grams, not of datatrove's words"
_SHINGLES_AT_ONCE = 256  # of one document, each with all hashes of the signature: what a processor's cache holds
_PRIME = np.uint64((1 << 61) - 1)


def choose_losers(entries: np.ndarray, rule: int) -> np.ndarray:
    """All but the best of those with the same key, as LOSER; `rule` is that of a copy in RULES, the next of a held-out
    document's."""
    order = np.lexsort(
        (entries["index"], entries["rank"], -entries["quality"], 1 - entries["held_out"], entries["key"])
    )
    ordered = entries[order]
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered["key"][1:] != ordered["key"][:-1]
    winner = np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))
    losers = np.empty(len(ordered), dtype=LOSER)
    losers["rank"], losers["index"] = ordered["rank"], ordered["index"]
    losers["rule"] = rule + ((ordered["held_out"][winner] == 1) & (ordered["held_out"] == 0))
    return np.sort(losers[~is_first], order=["rank", "index"])


def cluster_sizes(keys: np.ndarray) -> np.ndarray:
    """Of groups of two or more equal keys: their sizes, and how many have each, `[2, number of sizes]`."""
    sizes, counts = np.unique(np.unique(keys, return_counts=True)[1], return_counts=True)
    return np.stack([sizes, counts])[:, sizes > 1]


def read_cluster_sizes(folder: Path, kind: str) -> dict[int, int]:
    """How many groups of each size the tasks have found; `folder` is their losers' one."""
    total: Counter[int] = Counter()
    for path in sorted((folder / SIZES).glob(f"{kind}*.npy")):
        for size, count in np.load(path).T.tolist():
            total[size] += count
    return dict(sorted(total.items()))


class WriteKeys(PipelineStep):
    """Notes the keys of each document of a unit, by partition: `<folder>/<kind>/<partition>/<rank>.npy`."""

    type, name = "🫂 - DEDUP", "keys"

    def __init__(self, folder: Path, config: DuplicatesConfig):
        super().__init__()
        self.folder, self.config = folder, config

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        entries: dict[str, list[tuple]] = {kind: [] for kind in _KINDS}
        for index, document in enumerate(data):
            metadata = document.metadata
            end = (rank, index, metadata["quality"], int(metadata.get("held_out", False)))
            if self.config.exact:
                entries["exact"].append((content_key(document.text), *end))
            if self.config.url and metadata.get("url"):
                entries["url"].append((hash_text(metadata["url"]), *end))
            yield document
        for kind, rows in entries.items():
            table = np.array(rows, dtype=KEY)
            parts = table["key"] % np.uint64(self.config.partitions)
            for partition in range(self.config.partitions):
                save_array(self.folder / kind / f"{partition:05d}" / f"{rank:05d}.npy", table[parts == partition])


class ChooseExact(PipelineStep):
    """Task p compares the keys of partition p: the losers in `<out>/<kind>_<p>.npy`, and the sizes of the groups of
    equal documents in `<out>/cluster_sizes/<kind>_<p>.npy`."""

    type, name = "🫂 - DEDUP", "choice among copies"

    def __init__(self, folder: Path, out: Path):
        super().__init__()
        self.folder, self.out = folder, out

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        for number, kind in enumerate(_KINDS):
            paths = sorted((self.folder / kind / f"{rank:05d}").glob("*.npy"))
            entries = np.concatenate([np.empty(0, dtype=KEY), *map(np.load, paths)])
            save_array(self.out / f"{kind}_{rank:05d}.npy", choose_losers(entries, 2 * number))
            save_array(self.out / SIZES / f"{kind}_{rank:05d}.npy", cluster_sizes(entries["key"]))


class DropLosers(Stage):
    """Drops a unit's documents that have lost to another one."""

    def __init__(self, stage: str, folder: Path, losers: Path, keep: bool):
        super().__init__(stage, folder, keep_dropped=keep)
        self.losers = losers
        self._rules: dict[int, str] = {}
        self._index = -1

    def begin(self, rank: int) -> None:
        self._rules, self._index = losers_of(self.losers, rank), -1

    def judge(self, document: Document) -> str | None:
        self._index += 1
        return self._rules.get(self._index)


class SkipLosers(PipelineStep):
    """The same without an account, for a pass that only looks."""

    type, name = "🔻 - FILTER", "copies"

    def __init__(self, losers: Path):
        super().__init__()
        self.losers = losers

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        rules = losers_of(self.losers, rank)
        yield from (document for index, document in enumerate(data) if index not in rules)


def losers_of(folder: Path, rank: int) -> dict[int, str]:
    """The rule for each index of a unit's documents that lose; the files are only read where the unit is in them."""
    rules: dict[int, str] = {}
    for path in sorted(folder.glob("*.npy"), reverse=True):  # of several rules the first in the alphabet stands
        table = np.load(path, mmap_mode="r")
        start, end = np.searchsorted(table["rank"], [rank, rank + 1])
        rules |= {int(row["index"]): RULES[row["rule"]] for row in table[start:end]}
    return rules


class _Tokens(WordTokenizer):
    """In the place of the tokenizers that datatrove would download: signatures are made of `grams`."""

    def word_tokenize(self, text: str) -> list[str]:
        raise AssertionError(_NEVER_ASKED)

    def sent_tokenize(self, text: str) -> list[str]:
        raise AssertionError(_NEVER_ASKED)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise AssertionError(_NEVER_ASKED)


def minhash_config(config: NearDuplicatesConfig) -> MinhashConfig:
    """datatrove's settings for the recipe's."""
    return MinhashConfig(
        n_grams=config.gram_size,
        num_buckets=config.num_buckets,
        hashes_per_bucket=config.hashes_per_bucket,
        hash_config=HashConfig(precision=64, hash_fc="xxhash"),
    )


class Signatures(MinhashDedupSignature):
    """MinHash signatures of the different n-grams of `grams`, in bounded memory whatever a document's length."""

    def __init__(self, folder: Path, config: NearDuplicatesConfig):
        super().__init__(str(folder), minhash_config(config), language=_Tokens())

    def get_shingles(self, text: str) -> np.ndarray:
        return gram_hashes(text, self.config.n_grams).reshape((-1, 1))

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        starts = range(0, len(shingles), _SHINGLES_AT_ONCE)
        least = np.min([self._least(shingles[start : start + _SHINGLES_AT_ONCE]) for start in starts], axis=0)
        return [part.tolist() for part in np.split(least, self.config.num_buckets)]

    def _least(self, shingles: np.ndarray) -> np.ndarray:
        """The smallest value of each hash function over some shingles, `[number of hashes]`: that of datatrove, whose
        remainder by 2^61 - 1 is taken without a division."""
        factors, offsets = self.parameters
        values = shingles * factors
        values += offsets
        rest = values >> np.uint64(61)
        values &= _PRIME
        values += rest
        np.subtract(values, _PRIME, out=rest)  # what would be negative wraps around and is large
        return np.min(np.minimum(values, rest, out=rest), axis=0)


class WriteQualities(PipelineStep):
    """Notes what the best of a cluster is chosen by: `<folder>/<rank>.npy`."""

    type, name = "🫂 - DEDUP", "qualities"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        rows = []
        for index, document in enumerate(data):
            held_out = int(document.metadata.get("held_out", False))
            rows.append((0, rank, index, document.metadata["quality"], held_out))
            yield document
        save_array(self.folder / f"{rank:05d}.npy", np.array(rows, dtype=KEY))


class ChooseNear(PipelineStep):
    """One task: the losers of all clusters, in `<out>/near.npy`, and the clusters' sizes."""

    type, name = "🫂 - DEDUP", "choice among near duplicates"

    def __init__(self, clusters: Path, qualities: Path, out: Path):
        super().__init__()
        self.clusters, self.qualities, self.out = clusters, qualities, out

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        parts = [np.empty(0, dtype=KEY)]
        for path in sorted(self.clusters.glob("*.clusters")):
            members = np.fromfile(path, dtype="<u4").reshape(-1, 2)  # index of the document, number of the cluster
            entries = np.load(self.qualities / f"{int(path.stem):05d}.npy")[members[:, 0]]
            entries["key"] = members[:, 1]
            parts.append(entries)
        entries = np.concatenate(parts)
        shutil.rmtree(self.out, ignore_errors=True)
        save_array(self.out / "near.npy", choose_losers(entries, RULES.index("near")))
        save_array(self.out / SIZES / "near.npy", cluster_sizes(entries["key"]))
