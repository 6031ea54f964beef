"""Process groups: the one file that touches `megatron.core.parallel_state`.

`open_context` makes a `ParallelContext` from the recipe's `parallel` section; everything else is handed that object
and asks it for ranks, groups and the few collectives a run needs.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from megatron_sky.config.schema import ParallelConfig
from megatron_sky.distributed import compat, seeding
from megatron_sky.distributed import device as accelerator
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.distributed.rendezvous import choose_interface, meet
from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store

T = TypeVar("T")


@dataclass(frozen=True)
class ParallelContext:
    """This process's place in the job, its process groups, its device and the job's store."""

    layout: Layout
    place: Coordinates
    rank: int
    local_rank: int
    device: "torch.device"
    store: "Store | None" = None  # the job's key-value store; None in a dry run
    has_gloo_groups: bool = True

    @property
    def world_size(self) -> int:
        return self.layout.world_size

    @property
    def is_first_stage(self) -> bool:
        return self.place.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.place.pp_rank == self.layout.pp_size - 1

    def chunk_is_first(self, chunk: int) -> bool:
        """Whether model chunk `chunk` of this rank holds the embedding."""
        return self.is_first_stage and chunk == 0

    def chunk_is_last(self, chunk: int) -> bool:
        """Whether model chunk `chunk` of this rank holds the output layer."""
        return self.is_last_stage and chunk == self.layout.vpp_size - 1

    @property
    def dp_cp_group(self) -> "ProcessGroup":
        from megatron.core import parallel_state

        return parallel_state.get_data_parallel_group(with_context_parallel=True)

    @property
    def cp_group(self) -> "ProcessGroup":
        from megatron.core import parallel_state

        return parallel_state.get_context_parallel_group()

    @property
    def pp_group(self) -> "ProcessGroup":
        from megatron.core import parallel_state

        return parallel_state.get_pipeline_model_parallel_group()

    @property
    def tp_group(self) -> "ProcessGroup":
        from megatron.core import parallel_state

        return parallel_state.get_tensor_model_parallel_group()

    @property
    def stage_group(self) -> "ProcessGroup":
        """All ranks that hold parts of this pipeline stage's layers, or copies of them: TP x CP x DP."""
        from megatron.core import parallel_state

        return parallel_state.get_amax_reduction_group(with_context_parallel=True)

    @property
    def group_names(self) -> "dict[ProcessGroup, str]":
        """What each group of several ranks is called in reports; one that serves for several has the first's name."""
        from megatron.core import parallel_state

        named = {
            "TP": self.tp_group,
            "CP": self.cp_group,
            "DP x CP" if self.layout.cp_size > 1 else "DP": self.dp_cp_group,
            "PP": self.pp_group,
            "embeddings": parallel_state.get_embedding_group(check_initialized=False),
            "position embeddings": parallel_state.get_position_embedding_group(check_initialized=False),
            "TP x PP": parallel_state.get_model_parallel_group(),
            "TP x CP x DP": self.stage_group,
        }
        return {group: name for name, group in reversed(named.items()) if hasattr(group, "size") and group.size() > 1}

    def total_from_last_stage(self, values: "torch.Tensor") -> "torch.Tensor":
        """`values` (valid on the last pipeline stage only) summed over data and context ranks, everywhere.

        One small all-reduce and one broadcast; on a GPU the caller's `.tolist()` is the sync point.
        """
        import torch.distributed as dist
        from megatron.core import parallel_state

        if self.is_last_stage:
            dist.all_reduce(values, group=self.dp_cp_group)
        if self.layout.pp_size > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(values, last, group=self.pp_group)
        return values

    def agree(self, levels: list[int]) -> list[int]:
        """Each level's largest value over all ranks: how ranks decide together, in one small all-reduce."""
        import torch
        import torch.distributed as dist

        held = torch.tensor(levels, dtype=torch.int32, device=self.device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return held.tolist()

    def gather_objects(self, value: object) -> list:
        """`value` of every rank, in rank order, on every rank."""
        import torch.distributed as dist

        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first_rank(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, which alone does it, on every rank; its CheckpointError is every rank's."""
        import torch.distributed as dist

        result: list = [None, None]
        if self.rank == 0:
            try:
                result[0] = work()
            except CheckpointError as error:
                result[1] = error
        dist.broadcast_object_list(result, src=0)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def barrier(self) -> None:
        import torch.distributed as dist

        dist.barrier()

    def seed_step(self, seed: int, step: int, for_graphs: bool = False) -> None:
        """Seeds this rank's generators for `step` (see `seeding`); `for_graphs`: such as CUDA graphs can hold."""
        from megatron.core.tensor_parallel import random as megatron_random

        base = seeding.step_seed(seed, step, self.place.pp_rank, self.place.dp_rank, self.place.cp_rank)
        accelerator.seed(base)
        megatron_random.model_parallel_cuda_manual_seed(base, use_cudagraphable_rng=for_graphs)


@contextlib.contextmanager
def open_context(
    parallel: ParallelConfig,
    info: RankInfo,
    *,
    facts: dict | None = None,
    num_threads: int = 0,
    startup_timeout_seconds: float = 600,
    timeout_seconds: float = 1800,
    warn: Callable[[str], None] = print,
) -> Iterator[ParallelContext]:
    """Joins the job and makes its process groups; leaves them at the end, but not while failing.

    All ranks must come within `startup_timeout_seconds` with equal `facts`; a collective may take `timeout_seconds`.
    A failing rank must not enter a collective: it would wait for ranks that wait for it.
    """
    import torch.distributed as dist

    device = accelerator.setup(info.local_rank, num_threads, info.local_world_size)
    choose_interface(info)
    store = meet(info, facts or {}, timeout_seconds=startup_timeout_seconds, warn=warn)
    with _native_output_to_stderr():
        dist.init_process_group(
            accelerator.collective_backend(),
            store=dist.PrefixStore("group", store),
            rank=info.rank,
            world_size=info.world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        context = _make_groups(parallel, info.rank, info.local_rank, info.world_size, device, store=store)
    yield context
    close_context()


@contextlib.contextmanager
def _native_output_to_stderr() -> Iterator[None]:
    """What libraries print by themselves does not get between a verb's own lines: torch 2.10's gloo names its peers."""
    with contextlib.ExitStack() as restored:
        with contextlib.suppress(OSError):  # one of the two is closed
            own = os.dup(1)
            restored.callback(os.close, own)
            os.dup2(2, 1)
            restored.callback(os.dup2, own, 1)
        yield


@contextlib.contextmanager
def open_fake_context(parallel: ParallelConfig, rank: int, world_size: int) -> Iterator[ParallelContext]:
    """Rank `rank` of a job of `world_size` ranks that does not exist: groups without members, for a dry run.

    Collectives return at once and move nothing.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    device = accelerator.setup()
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        with _own_groups_alone(rank):
            context = _make_groups(parallel, rank, 0, world_size, device, gloo_groups=False)
        yield context
    finally:
        close_context()


@contextlib.contextmanager
def _own_groups_alone(rank: int) -> Iterator[None]:
    """While megatron-core makes its groups, those without this rank are left out, and who is in which is kept.

    Every rank takes part in making all groups, which a job that does not exist has no need of: of 16,384 ranks there
    are 45,000, and a rehearsal makes them once for each rank that it looks at.
    """
    from megatron.core import parallel_state
    from torch.distributed import GroupMember

    create, members = parallel_state.create_group, parallel_state.generate_masked_orthogonal_rank_groups

    def create_own(ranks=None, *args, **kwargs):
        return create(ranks, *args, **kwargs) if ranks is None or rank in ranks else GroupMember.NON_GROUP_MEMBER

    def kept(world_size, parallel_size, mask):
        return _kept_members(members, world_size, tuple(parallel_size), tuple(mask))

    compat.replace_members(parallel_state, create_group=create_own, generate_masked_orthogonal_rank_groups=kept)
    try:
        yield
    finally:
        compat.replace_members(parallel_state, create_group=create, generate_masked_orthogonal_rank_groups=members)


@functools.lru_cache(maxsize=32)
def _kept_members(members: Callable, world_size: int, parallel_size: tuple, mask: tuple) -> list:
    return members(world_size, list(parallel_size), list(mask))


def close_context() -> None:
    """Leaves every process group."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _make_groups(
    parallel: ParallelConfig, rank: int, local_rank: int, world_size: int, device, store=None, gloo_groups: bool = True
) -> ParallelContext:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp_size,
        pipeline_model_parallel_size=parallel.pp_size,
        virtual_pipeline_model_parallel_size=parallel.vpp_size if parallel.vpp_size > 1 else None,
        context_parallel_size=parallel.cp_size,
        create_gloo_process_groups=gloo_groups,
    )
    layout = Layout.of(parallel, world_size)
    place = layout.coordinates(rank)
    coordinates = Coordinates(
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
    )
    assert place == coordinates, f"megatron-core orders ranks otherwise: {coordinates}, not {place}"
    return ParallelContext(
        layout=layout,
        place=place,
        rank=rank,
        local_rank=local_rank,
        device=device,
        store=store,
        has_gloo_groups=gloo_groups,
    )
