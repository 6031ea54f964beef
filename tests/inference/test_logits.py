"""Losses of logits, and the pieces in which they are computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.inference.logits import losses_of_logits, row_chunks


@given(st.integers(0, 5000), st.integers(1, 200_000))
def test_chunks_cover_all_rows_once_and_in_order(num_rows, width):
    rows = [row for chunk in row_chunks(num_rows, width) for row in range(num_rows)[chunk]]
    assert rows == list(range(num_rows))


@pytest.mark.parametrize("width", [1, 1000, 10**7])
def test_a_chunk_is_neither_large_nor_of_few_rows(width):
    chunk = row_chunks(10**9 if width == 1 else 100_000, width)[0]
    assert chunk.stop * width <= 1 << 20 or chunk.stop == 256


def test_losses_are_cross_entropy_and_a_tie_counts_as_likeliest():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
    targets = torch.arange(7)
    losses, likeliest = losses_of_logits(logits, targets)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none"))
    assert losses.dtype == torch.float32 and likeliest.tolist() == (logits.argmax(-1) == targets).tolist()
    losses, likeliest = losses_of_logits(torch.zeros(1, 4), torch.tensor([3]))
    assert losses.item() == pytest.approx(torch.tensor(4.0).log().item()) and likeliest.item()
