"""8-bit floating point for matrix products, with torch alone: formats, scales, amax history, casts and the product.

A tensor x is kept as q = cast(s x) with one scale s for the whole tensor, and used as q / s. Forward operands are E4M3;
gradients are E5M2 (`hybrid`) or E4M3. Products accumulate in fp32: by `torch._scaled_mm` on a GPU, elsewhere by an fp32
product of the cast operands, which is the same sum.

Scales are powers of two, the largest that keeps amax (the largest magnitude) within the format. Traded: up to one bit
of a format's range. Gained: scaling rounds nothing, so a different scale changes only what is too small or too large
for the format, and a layout that measures a shard instead of the whole changes next to nothing.

`tensorwise` takes each tensor's own amax. `delayed` takes it from the steps before (Micikevicius et al. 2022, section
3.2): no pass over the data before the cast. Its history moves once a step, by the amax over all of the step's micro
batches and ranks, so that it does not depend on the layout.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INPUT, WEIGHT, GRAD = 0, 1, 2
# Largest value is 1.75 * 2^exponent in both: 448 and 57,344.
_LARGEST_EXPONENT = {E4M3: 8, E5M2: 15}
_MANTISSA_OF_1_75 = 0x600000


def formats(name: str) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """The formats of input, weight and output gradient under `hybrid` or `e4m3`."""
    return (E4M3, E4M3, E5M2 if name == "hybrid" else E4M3)


def largest(dtype: torch.dtype) -> float:
    """The largest finite value of an 8-bit format."""
    return 1.75 * 2.0 ** _LARGEST_EXPONENT[dtype]


def scale_of(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest power of two s with s * amax <= largest(dtype), within [2^-126, 2^126].

    1 where amax is 0 or not finite. `amax`: fp32, not negative, any shape. It is read from the bits, so it is exact.
    """
    bits = amax.view(torch.int32)
    exponent, mantissa = (bits >> 23) - 127, bits & 0x7FFFFF
    fits = _LARGEST_EXPONENT[dtype] - exponent - (mantissa > _MANTISSA_OF_1_75).to(torch.int32)
    power = (fits.clamp(-126, 126) + 127) << 23
    usable = torch.isfinite(amax) & (amax > 0)
    return torch.where(usable, power.view(torch.float32), 1.0)


def amax_of(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude in `x`, fp32 without dimensions."""
    return x.abs().amax().float()


def cast(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` * `scale` in an 8-bit format, rounded to nearest even; what is too large becomes the largest value."""
    limit = largest(dtype)
    return (x.float() * scale).clamp(-limit, limit).to(dtype)


def cast_and_measure(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(`cast`, `amax_of`) of `x` in what a compiler makes one pass."""
    return cast(x, scale, dtype), amax_of(x)


def product(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype,
    fast: bool = False,
) -> torch.Tensor:
    """`a` `[m, k]` times the transpose of `b` `[n, k]`, scales taken out: `[m, n]` in `out_dtype`.

    `fast` lets a GPU accumulate with fewer bits, which is fine forward and too coarse backward.
    """
    if a.device.type == "cpu":
        wide = a.float() @ b.float().t()
        return wide.mul_(a_scale.reciprocal()).mul_(b_scale.reciprocal()).to(out_dtype)
    return torch._scaled_mm(
        a.contiguous(),
        b.contiguous().t(),
        scale_a=a_scale.reciprocal(),
        scale_b=b_scale.reciprocal(),
        out_dtype=out_dtype,
        use_fast_accum=fast,
    )


def pushed(history: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """`history` `[..., length]`, newest first, after one more step's `amax` `[...]`.

    An amax that is not finite says nothing of the next step's; the newest one stands for it.
    """
    newest = torch.where(torch.isfinite(amax), amax, history[..., 0])
    return torch.cat([newest.unsqueeze(-1), history[..., :-1]], dim=-1)


def expected_amax(history: torch.Tensor, algorithm: str) -> torch.Tensor:
    """The amax that the next step is scaled for: the history's largest (`max`) or newest (`most_recent`)."""
    return history.amax(dim=-1) if algorithm == "max" else history[..., 0]


class Tensorwise:
    """One linear's scales, each taken from the tensor in hand."""

    measures_first = True

    def __init__(self, dtypes: tuple[torch.dtype, ...]):
        self.dtypes = dtypes

    def scale(self, operand: int, x: torch.Tensor, group: "ProcessGroup | None" = None) -> torch.Tensor:
        """The scale of operand INPUT, WEIGHT or GRAD; `group`: the ranks that must use one scale for their parts."""
        amax = amax_of(x)
        if group is not None:
            torch.distributed.all_reduce(amax, op=torch.distributed.ReduceOp.MAX, group=group)
        return scale_of(amax, self.dtypes[operand])


class Delayed:
    """One linear's scales from the history: views into the tables of all linears of the rank (`AmaxHistory`)."""

    def __init__(self, dtypes: tuple[torch.dtype, ...], tables: "AmaxHistory", row: tuple[int, int]):
        self.dtypes, self._tables, self._row = dtypes, tables, row

    @property
    def measures_first(self) -> bool:
        """Whether there is no history yet, and each tensor is scaled by its own amax."""
        return self._tables.is_empty

    def scale(self, operand: int, x: torch.Tensor, group: "ProcessGroup | None" = None) -> torch.Tensor:
        if not self._tables.is_empty:
            return self._tables.scales[*self._row, operand]
        return Tensorwise(self.dtypes).scale(operand, x, group)

    def record(self, operand: int, amax: torch.Tensor) -> None:
        """Takes note of a tensor's amax for the steps to come."""
        held = self._tables.amax[*self._row, operand]
        torch.maximum(held, amax, out=held)


class AmaxHistory:
    """The amax history of every linear of one rank's `num_layers` layers, and the scales that follow from it.

    Tables `[layer, linear, operand]`; `history` has the steps as a last dimension, newest first.
    """

    def __init__(
        self, num_layers: int, num_linears: int, *, length: int, algorithm: str, format: str, device: torch.device
    ):
        self.dtypes = formats(format)
        self._algorithm = algorithm
        self.history = torch.zeros(num_layers, num_linears, 3, length, dtype=torch.float32, device=device)
        self.amax = torch.zeros(num_layers, num_linears, 3, dtype=torch.float32, device=device)
        self.scales = torch.ones_like(self.amax)
        self.is_empty = True

    def begin_step(self) -> None:
        """Forgets the amax of a step that was not applied."""
        self.amax.zero_()

    def end_step(self, group: "ProcessGroup") -> None:
        """Moves the history by the step's amax over `group`: the ranks that hold parts of the same layers."""
        torch.distributed.all_reduce(self.amax, op=torch.distributed.ReduceOp.MAX, group=group)
        self._take(pushed(self.history, self.amax))
        self.is_empty = False

    def restore(self, history: torch.Tensor | None) -> None:
        """Takes `history` over as it was saved, or begins anew."""
        self._take(torch.zeros_like(self.history) if history is None else history)
        self.is_empty = not bool(self.history.any())

    def _take(self, history: torch.Tensor) -> None:
        self.history.copy_(history)
        expected = expected_amax(self.history, self._algorithm)
        for operand, dtype in enumerate(self.dtypes):
            self.scales[..., operand] = scale_of(expected[..., operand].contiguous(), dtype)
