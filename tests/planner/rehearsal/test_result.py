"""What a rehearsal found, as plain values for JSON."""

import json

from megatron_sky.planner.rehearsal.result import PARTS, Operation, Rehearsal, Traffic


def rehearsal(*operations: Operation) -> Rehearsal:
    return Rehearsal(
        world_size=8,
        rank=3,
        stage=1,
        layout="PP2",
        backend="torch",
        parameters=10,
        num_microbatches=4,
        rehearsed_microbatches=2,
        state=dict.fromkeys(PARTS[:3], 5),
        peak_bytes=100,
        peak_phase="forward",
        peak_by_part={},
        peak_by_operator={},
        peaks={"forward": 100},
        operations=operations,
        traffic=(Traffic("all_reduce", "TP", 2, 3, 64),),
    )


def test_operations_of_one_operator_add_up():
    found = rehearsal(
        Operation("mm", (2, 3, 4), "bf16", 2, 96),
        Operation("mm", (1, 1, 1), "fp32", 1, 2),
        Operation("sdpa", (1,), "bf16", 1, 7),
    )
    assert found.flops == {"mm": 98, "sdpa": 7} and rehearsal().flops == {}


def test_it_goes_through_json():
    found = rehearsal(Operation("mm", (2, 3, 4), "bf16", 2, 96))
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["flops"] == {"mm": 96} and plain["operations"][0]["shape"] == [2, 3, 4]
    assert plain["traffic"][0] == {"collective": "all_reduce", "group": "TP", "group_size": 2, "calls": 3, "bytes": 64}
    assert plain["state"] == {"weights": 5, "gradients": 5, "optimizer": 5}
