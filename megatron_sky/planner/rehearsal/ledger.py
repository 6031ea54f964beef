"""The book of a rehearsal: every storage from birth to death, every product, every collective, every wait.

torch hands each operator to `Ledger` on its way. Sizes are rounded up as torch's caching allocator does; what it wastes
between blocks is not known here.
"""

import contextlib
import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_sky.distributed import meta_device
from megatron_sky.planner.rehearsal import work
from megatron_sky.planner.rehearsal.result import ACTIVATIONS, COMMUNICATION, LOGITS, OTHER, UPDATE

PACKAGE = Path(__file__).parents[2]
_BLOCK = 512  # bytes; the caching allocator's smallest step
_OWN = (str(Path(__file__).parent), str(PACKAGE / "distributed"))
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_PLAIN = torch.Tensor.__torch_dispatch__
_COMPUTES = ("forward and backward", "validation")
"""Phases in which a GPU runs behind the CPU, which must not wait for it."""


class Ledger(TorchDispatchMode, meta_device.Watch):
    """`vocabulary`: the width of the output layer on this rank, by which logits are known; None where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary: int | None = None
        self.operator = ""  # the one that runs, or ran last
        self._phases: list[str] = []
        self._fused: list[tuple[str, list]] = []
        self._kernels: list[str] = []
        self.forget()

    def forget(self) -> None:
        """Begins anew. What an earlier rank left in caches is not the next one's, unless that meets it again."""
        self.live = 0
        self._held: dict[int, tuple[int, str, str, weakref.ref]] = {}
        self._by_part: Counter[tuple[str, str]] = Counter()
        self.restart()

    def restart(self) -> None:
        """Counts operations, traffic and waits, and looks for the peak, from here on."""
        self.operations: Counter[tuple[str, tuple[str, tuple[int, ...], str, int]]] = Counter()
        self.traffic: Counter[tuple[str, str, Any]] = Counter()
        self.traffic_bytes: Counter[tuple[str, str, Any]] = Counter()
        self.waited: Counter[tuple[str, str]] = Counter()
        self.peaks: dict[str, int] = {}
        self.peak, self.peak_phase = 0, ""
        self._at_peak: Counter[tuple[str, str]] = Counter()
        self._is_stale = False  # the composition at the peak is the present one, not yet copied
        self._look()

    @property
    def at_peak(self) -> Counter[tuple[str, str]]:
        """Bytes by (part, operator) when the most was held."""
        return +(self._by_part if self._is_stale else self._at_peak)

    @property
    def current_phase(self) -> str:
        return self._phases[-1] if self._phases else ""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._phases.append(name)
        self._look()
        try:
            yield
        finally:
            self._phases.pop()

    @contextlib.contextmanager
    def fused(self, name: str) -> Iterator[None]:
        storages: list = []
        self._fused.append((name, storages))
        try:
            yield
        finally:
            self._fused.pop()
        for reference, part in storages:
            storage = reference()
            if storage is not None:
                self._hold(storage, part, name)

    @contextlib.contextmanager
    def kernel(self, name: str) -> Iterator[None]:
        self._kernels.append(name)
        self.operator = name
        try:
            yield
        finally:
            self._kernels.pop()

    def computed(self, operator: str, shape: tuple[int, ...], dtype: str, passes: int) -> None:
        self.operations[self.current_phase, (operator, shape, dtype, passes * 2 * math.prod(shape))] += 1

    def communicates_through(self, buffer: torch.Tensor) -> None:
        self.assign([buffer], COMMUNICATION)

    def communicated(self, collective: str, tensor: torch.Tensor, group, received: Sequence[torch.Tensor]) -> None:
        if group is not None and group.size() == 1:
            return
        self.traffic[self.current_phase, collective, group] += 1
        self.traffic_bytes[self.current_phase, collective, group] += tensor.nbytes
        for each in received:
            self.assign([each], COMMUNICATION, only=ACTIVATIONS)

    def assign(self, tensors: Sequence[torch.Tensor], part: str, only: str | None = None) -> None:
        """Puts the tensors' memory into a part; `only`: where it is in that one now."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._held and only in (None, self._held[key][1]):
                size, old, operator, reference = self._held[key]
                self._by_part[old, operator] -= size
                self._by_part[part, operator] += size
                self._held[key] = (size, part, operator, reference)

    def settle(self) -> None:
        """What a step's forward and backward passes have left behind is kept all along: caches, 8-bit weights."""
        for key, (size, part, operator, reference) in list(self._held.items()):
            if part == ACTIVATIONS:
                self._by_part[part, operator] -= size
                self._by_part[OTHER, operator] += size
                self._held[key] = (size, OTHER, operator, reference)

    def parts(self) -> Counter[str]:
        """Bytes held now by part."""
        total: Counter[str] = Counter()
        for (part, _), size in self._by_part.items():
            total[part] += size
        return +total

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(kind.__torch_dispatch__ is not _PLAIN for kind in types):
            return NotImplemented  # a tensor made of others, as 8-bit ones are, takes itself apart first
        kwargs = kwargs or {}
        self.operator = self._kernels[-1] if self._kernels else work.name_of(func)
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            self.waits(self.operator, "reads a number of the GPU")
            return _good_number(args[0].dtype)
        if func in _COPIES and _leaves_the_gpu(func, args, kwargs):
            self.waits(self.operator, "copies from the GPU")
            if func is _aten.copy_.default:
                return args[0].fill_(1)
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func in _COPIES and _comes_to_the_gpu(func, args, kwargs):
            self.waits(self.operator, "copies to the GPU without non_blocking=True")
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            self._meet(result)
        elif isinstance(result, tuple | list):
            for item in result:
                if isinstance(item, torch.Tensor):
                    self._meet(item)
        done = work.operation(func, args, result)
        if done is not None:
            self.operations[self.current_phase, done] += 1
            self._pass(work.workspace(func, args))
        return result

    def waits(self, operator: str, why: str) -> None:
        if self.current_phase in _COMPUTES:
            self.operator = operator
            raise Waits(f"{why} while it computes, so that the CPU waits for it at each micro batch")
        if self._phases:
            self.waited[own_line(), why] += 1

    def _meet(self, tensor: torch.Tensor) -> None:
        """Takes note of a tensor that an operator gave."""
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self._held:
            return
        is_logits = self.vocabulary is not None and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
        part = LOGITS if is_logits else ACTIVATIONS
        if self._fused:
            self._fused[-1][1].append((weakref.ref(storage), part))
        else:
            self._hold(storage, part, self.operator)

    def _hold(self, storage, part: str, operator: str) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._held:
            return
        if self.current_phase not in (*_COMPUTES, "gradient reduction"):
            part = UPDATE if self._phases else OTHER

        def gone(reference) -> None:
            if key not in self._held or self._held[key][3] is not reference:  # forgotten
                return
            if self._is_stale:
                self._at_peak, self._is_stale = self._by_part.copy(), False
            size, part, operator, _ = self._held.pop(key)
            self._by_part[part, operator] -= size
            self.live -= size

        self._held[key] = (size, part, operator, weakref.ref(storage, gone))
        self._by_part[part, operator] += size
        self.live += size
        self._look()

    def _look(self) -> None:
        phase = self.current_phase
        if self.live > self.peaks.get(phase, 0):
            self.peaks[phase] = self.live
        if self.live > self.peak:
            self.peak, self.peak_phase, self._is_stale = self.live, phase, True

    def _pass(self, workspace: int) -> None:
        """Memory that a kernel takes and gives back."""
        if not workspace:
            return
        self.peaks[self.current_phase] = max(self.peaks.get(self.current_phase, 0), self.live + workspace)
        if self.live + workspace > self.peak:
            self.peak, self.peak_phase, self._is_stale = self.live + workspace, self.current_phase, False
            self._at_peak = self._by_part.copy()
            self._at_peak[ACTIVATIONS, f"{self.operator} (workspace)"] += workspace


class Waits(Exception):
    """The CPU would wait for the GPU in the midst of a step."""


def own_line(frames: Iterator[tuple[str, int]] | None = None) -> str:
    """The innermost line of this package, the rehearsal's own aside, as `trainer/step.py:99`."""
    known = frames or _stack()
    for name, line in known:
        if name.startswith(str(PACKAGE)) and not name.startswith(_OWN):
            return f"{Path(name).relative_to(PACKAGE.parent)}:{line}"
    return "?"


def _stack() -> Iterator[tuple[str, int]]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _leaves_the_gpu(func, args, kwargs) -> bool:
    if func is _aten.copy_.default:
        return args[1].is_meta and not args[0].is_meta
    target = kwargs.get("device")
    return args[0].is_meta and target is not None and torch.device(target).type == "cpu"


def _comes_to_the_gpu(func, args, kwargs) -> bool:
    """Whether numbers of the CPU are copied in a way that waits."""
    if args[0].numel() == 0:
        return False
    if func is _aten.copy_.default:
        return (
            args[0].is_meta and not args[1].is_meta and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        )
    target = kwargs.get("device")
    comes = not args[0].is_meta and target is not None and torch.device(target).type == "meta"
    return comes and not kwargs.get("non_blocking")


def _good_number(dtype: torch.dtype) -> float | int | bool:
    """What a step without trouble has: tokens, a norm; and no gradient that overflowed."""
    if any(name == "_unscale_main_grads_and_check_for_nan" for name in _functions()):
        return 0.0
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _functions() -> Iterator[str]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back
