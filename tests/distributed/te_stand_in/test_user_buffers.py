"""Buffers through which ranks send while they multiply."""

import pytest
import torch

from tests.distributed.te_stand_in.watch import Notes, stand_in


def test_a_ring_that_adds_up_has_a_part_for_each_rank_beside_its_own():
    notes = Notes()
    e = stand_in(notes)
    helper = e.CommOverlapHelper("world", "tp")
    kinds = e.CommOverlapType
    ring = e.CommOverlapP2P([128, 32], torch.bfloat16, helper, 4, kinds.RS, num_comm_sm=1)
    gathered = e.CommOverlapP2P([128, 32], torch.uint8, helper, 4, kinds.AG)
    summed = e.CommOverlap([128, 32], torch.bfloat16, helper, 4, num_splits=4)
    assert [tuple(buffer.shape) for buffer in notes.buffers] == [(224, 32), (128, 32), (128, 32)]
    assert ring.is_p2p_overlap() and not summed.is_p2p_overlap()
    assert gathered.is_fp8_ubuf() and not ring.is_fp8_ubuf()
    assert summed.get_buffer().shape == (128, 32) and summed.get_buffer(True).shape == (32, 32)
    assert summed.get_buffer(True, [4, 8, 32]).shape == (4, 8, 32)
    summed.moved(kinds.RS)
    gathered.moved(kinds.AG)
    assert notes.traffic == [
        ("reduce_scatter_tensor", (128, 32), "tp"),
        ("all_gather_into_tensor", (128, 32), "tp"),
    ]


def test_what_has_no_room_fails():
    e = stand_in(Notes())
    buffer = e.CommOverlap([128, 32], torch.bfloat16, e.CommOverlapHelper("world"), 4)
    buffer.copy_into_buffer(torch.empty(32, 32, device="meta"), local_chunk=True)
    with pytest.raises(ValueError, match="no room"):
        buffer.copy_into_buffer(torch.empty(33, 32, device="meta"), local_chunk=True)
