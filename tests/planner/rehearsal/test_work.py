"""Operations by shape, with torch's own counts beside them where it has any."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_sky.planner.rehearsal import work
from megatron_sky.planner.rehearsal.ledger import Ledger


def meta(*shape: int, dtype=torch.bfloat16, grad: bool = False) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)


def products() -> None:
    out = meta(3, 7)
    torch.mm(meta(3, 5), meta(5, 7))
    torch.addmm(meta(7), meta(3, 5), meta(5, 7))
    out.addmm_(meta(3, 5), meta(5, 7))
    torch.bmm(meta(2, 3, 5), meta(2, 5, 7))
    torch.baddbmm(meta(2, 3, 7), meta(2, 3, 5), meta(2, 5, 7))


def test_products():
    with Ledger() as ledger:
        products()
    assert ledger.operations == {
        ("", ("mm", (3, 7, 5), "bfloat16", 210)): 1,
        ("", ("addmm", (3, 7, 5), "bfloat16", 210)): 2,
        ("", ("bmm", (2, 3, 7, 5), "bfloat16", 420)): 1,
        ("", ("baddbmm", (2, 3, 7, 5), "bfloat16", 420)): 1,
    }


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_attention_forward_and_backward(kernel):
    q, k, v = (meta(2, 4, 16, 8, grad=True) for _ in range(3))
    more = (0.0, True, False) if kernel == "flash" else (None, True, 0.0, True)
    with FlopCounterMode(display=False) as counter, Ledger() as ledger:
        getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")(q, k, v, *more)[0].sum().backward()
    shape, dtype = (2, 4, 16, 16, 8), "bfloat16"
    one = 2 * 2 * 4 * 16 * 16 * 8
    assert ledger.operations == {
        ("", (f"{kernel}_attention", shape, dtype, 2 * one)): 1,
        ("", (f"{kernel}_attention_backward", shape, dtype, 5 * one)): 1,
    }
    assert counter.get_total_flops() == 7 * one


def test_attention_of_many_lengths_is_counted_as_if_all_were_the_longest():
    q, k = meta(64, 4, 8, grad=True), meta(64, 2, 8, grad=True)
    bounds = meta(4, dtype=torch.int32)
    with Ledger() as ledger:
        torch.ops.aten._flash_attention_forward(q, k, k, bounds, bounds, 32, 32, 0.0, True, False)[0].sum().backward()
    assert set(ledger.operations) == {
        ("", ("flash_attention", (1, 4, 64, 32, 8), "bfloat16", 4 * 4 * 64 * 32 * 8)),
        ("", ("flash_attention_backward", (1, 4, 64, 32, 8), "bfloat16", 10 * 4 * 64 * 32 * 8)),
    }
    backward = torch.ops.aten._flash_attention_backward.default
    taken = work.workspace(backward, (q, q, k, k, q, None, bounds, bounds, 32, 32))
    assert taken == 4 * 4 * (64 + 3 * 128) * (32 + 1) + 2 * 4 * 64 * 8 * 2


def test_the_lower_right_corner_in_fp32_is_the_efficient_kernel():
    q, k = (meta(2, length, 4, 8, dtype=torch.float32, grad=True) for length in (16, 48))
    with Ledger() as ledger:
        out = torch.ops.aten._efficient_attention_forward(q, k, k, None, None, None, None, None, 0.0, 2, True)[0]
        out.sum().backward()
    assert {done[0]: done[1] for _, done in ledger.operations} == {
        "efficient_attention": (2, 4, 16, 48, 8),
        "efficient_attention_backward": (2, 4, 16, 48, 8),
    }


def test_grouped_queries_count_for_each_query_head():
    q, k = meta(1, 8, 16, 64), meta(1, 2, 16, 64)
    with Ledger() as ledger:
        torch.ops.aten._scaled_dot_product_flash_attention(q, k, k, 0.0, True, False)
    ((_, (name, shape, _, flops)),) = ledger.operations
    assert (name, shape, flops) == ("flash_attention", (1, 8, 16, 16, 64), 4 * 8 * 16 * 16 * 64)


def test_what_flash_attention_takes_for_its_backward_pass():
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
    grad, q, k = meta(1, 8, 100, 64), meta(1, 8, 100, 64), meta(1, 2, 100, 64)
    sums = 4 * 8 * 128 * (64 + 1)
    assert work.workspace(backward, (grad, q, q)) == sums
    assert work.workspace(backward, (grad, q, k)) == sums + 2 * 8 * 100 * 64 * 2
    assert work.workspace(torch.ops.aten.mm.default, (q, k)) == 0
