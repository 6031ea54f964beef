"""tools/report_theoretical_memory.py under Megatron-LM's flags."""

import re

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.planner.megatron_report import theoretical_memory
from tools.report_theoretical_memory import main

FLAGS = (
    "--num-layers 52 --hidden-size 4608 --ffn-hidden-size 12288 --num-attention-heads 36 --seq-length 4096 "
    "--max-position-embeddings 4096 --micro-batch-size 1 --pipeline-model-parallel-size 2 --use-distributed-optimizer "
    "--swiglu --bf16 --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --vocab-size 65536 "
    "--untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0"
)
SKYWORK = FLAGS.split()


def test_skyworks_stages():
    lines = theoretical_memory(SKYWORK, 512)
    assert lines[2:5] == [
        "Total number of parameters in billions: 13.85",
        "Number of parameters in most loaded shard in billions: 6.9271",
        "Number of parameters in other shards in billions: 6.9271",
    ]
    found = [
        re.search(r"optimizer=([\d.]+) MB, activation=([\d.]+) MB, total=([\d.]+) MB", line) for line in lines[5:7]
    ]
    state, activation, total = (float(each) for each in found[0].groups())
    assert state == pytest.approx(6927132672 * (6 + 12 / 256) / 2**20, rel=1e-4)
    assert total == pytest.approx(state + activation) and total == pytest.approx(74196, rel=0.005)  # as rehearsed
    assert float(found[1].group(2)) < activation


def test_by_default_as_few_ranks_as_the_layout_needs():
    state = [re.search(r"optimizer=([\d.]+)", "".join(theoretical_memory(SKYWORK, size)))[1] for size in (None, 2)]
    assert state[0] == state[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-layers", "4", "--hidden-size", "64"], "model.num_attention_heads: is required"),
        ([*SKYWORK, "--tensor-model-parallel-size", "5"], "must be a multiple of parallel.tp_size"),
    ],
)
def test_what_is_lacking_is_told(arguments, said):
    with pytest.raises(ConfigError, match=said):
        theoretical_memory(arguments)


def test_the_script(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "512")
    assert main(SKYWORK) == 0
    assert "Stage 1: weight and optimizer=" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "511")
    assert main(SKYWORK) == ConfigError.exit_code
    assert "must divide the number of ranks, 511" in capsys.readouterr().err
