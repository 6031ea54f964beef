"""Which rank does what, as arithmetic: no torch, no process groups.

The order is megatron-core's default, tp fastest, then cp, dp, and pp slowest, so that tensor-parallel ranks, which
talk most, are neighbours on one node.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_sky.config.schema import ParallelConfig


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions, in ranks (vpp_size: model chunks per pipeline stage)."""

    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    dp_size: int = 1
    vpp_size: int = 1

    @classmethod
    def of(cls, parallel: "ParallelConfig", world_size: int) -> "Layout":
        """The layout that `parallel` (the recipe's section) gives `world_size` ranks, which must divide."""
        split = parallel.tp_size * parallel.pp_size * parallel.cp_size
        assert world_size % split == 0, "config.validate checks this before"
        return cls(parallel.tp_size, parallel.pp_size, parallel.cp_size, world_size // split, parallel.vpp_size)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size * self.cp_size * self.dp_size

    def coordinates(self, rank: int) -> "Coordinates":
        """Where `rank` stands in each dimension."""
        assert 0 <= rank < self.world_size
        rest, tp = divmod(rank, self.tp_size)
        rest, cp = divmod(rest, self.cp_size)
        pp, dp = divmod(rest, self.dp_size)
        return Coordinates(tp_rank=tp, cp_rank=cp, dp_rank=dp, pp_rank=pp)

    def rank(self, at: "Coordinates") -> int:
        """The rank that stands at `at`: the inverse of `coordinates`."""
        return at.tp_rank + self.tp_size * (at.cp_rank + self.cp_size * (at.dp_rank + self.dp_size * at.pp_rank))

    def __str__(self) -> str:
        sizes = {"TP": self.tp_size, "PP": self.pp_size, "VPP": self.vpp_size, "CP": self.cp_size, "DP": self.dp_size}
        return " x ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one process"


@dataclass(frozen=True)
class Coordinates:
    """A rank's place in each parallel dimension."""

    tp_rank: int
    cp_rank: int
    dp_rank: int
    pp_rank: int


def samples_of_microbatch(first_sample: int, index: int, *, micro_batch_size: int, dp_size: int, dp_rank: int) -> range:
    """Sample numbers of micro batch `index` on data-parallel rank `dp_rank` in the step that begins at `first_sample`.

    A step takes a contiguous run of samples whatever the layout, so any layout consumes the same samples.
    """
    start = first_sample + (index * dp_size + dp_rank) * micro_batch_size
    return range(start, start + micro_batch_size)
