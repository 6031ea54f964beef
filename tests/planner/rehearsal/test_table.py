"""A rehearsal as text and as JSON."""

import json
from dataclasses import replace

from megatron_sky.planner.rehearsal import table
from megatron_sky.planner.rehearsal.result import Operation, Rehearsal, Traffic

GIB = 1 << 30
ONE = Rehearsal(
    world_size=512,
    rank=0,
    stage=0,
    layout="PP16 x DP32",
    backend="torch",
    parameters=6_927_132_672,
    num_microbatches=128,
    rehearsed_microbatches=32,
    state={"weights": GIB, "gradients": 2 * GIB, "optimizer": 0, "other": 0},
    peak_bytes=5 * GIB,
    peak_phase="forward and backward",
    peak_by_part={"weights": GIB, "gradients": 2 * GIB, "activations": 2 * GIB},
    peak_by_operator={"mm": 2 * GIB - 512, "mul": 512},
    peaks={"forward and backward": 5 * GIB, "optimizer": 3 * GIB},
    operations=(
        Operation("mm", (4, 4, 4), "bfloat16", 2, int(3e12)),
        Operation("mm", (8, 4, 4), "bfloat16", 1, int(1e12)),
        Operation("flash_attention", (1, 2, 3, 3, 4), "bfloat16", 1, int(2.5e12)),
    ),
    traffic=(
        Traffic("reduce_scatter_tensor", "DP", 32, 21, 2 * GIB),
        Traffic("all_reduce", "all", 512, 1, 4),
    ),
    seconds=1.25,
)


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.rsplit("  ", 1) for line in text.splitlines()]
    return {line[0].strip(): line[1:] for line in lines}


def test_text_has_what_counts():
    text = table.as_text([ONE])
    assert text.startswith(
        "rehearsed   PP16 x DP32 on 512 rank(s) with the torch backend, 32 of a step's 128 micro batches"
    )
    found = rows(text)
    assert found["parameters, millions"] == ["6,927.1"]
    assert found["memory at the peak, GiB"] == ["5.00"]
    assert found["flash_attention"] == ["2.50"]
    assert found["reduce_scatter_tensor DP (32)"] == ["2.00"]
    assert "all_reduce" not in text and "mul" not in found, "less than a thousandth of the first"


def test_many_stages_are_told_in_tables_that_fit_a_screen():
    text = table.as_text([replace(ONE, stage=stage, rank=32 * stage) for stage in range(16)])
    assert max(map(len, text.splitlines())) <= 37 + 8 * 11
    assert text.count("memory at the peak, GiB") == 2
    assert "in 20.0 s" in text
    assert "rank 480" in text


def test_json_has_everything():
    told = json.loads(table.as_json([ONE]))
    (rank,) = told["ranks"]
    assert told["backend"] == "torch"
    assert rank["flops"] == {"mm": int(4e12), "flash_attention": int(2.5e12)}
    assert rank["operations"][0]["shape"] == [4, 4, 4]
    assert rank["traffic"][1] == {"collective": "all_reduce", "group": "all", "group_size": 512, "calls": 1, "bytes": 4}
