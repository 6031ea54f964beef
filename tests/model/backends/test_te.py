"""What Transformer Engine is asked for: one size of buffers, products in 8 bits by the version's own words."""

import sys
from enum import Enum
from types import ModuleType

import pytest

from megatron_sky.config.schema import Fp8Config, ModelConfig, ParallelConfig, PrecisionConfig, TrainConfig
from megatron_sky.model.backends.te import open_user_buffers, packed_documents

MODEL = ModelConfig.model_validate({"preset": "tiny", "seq_length": 64, "hidden_size": 32, "num_attention_heads": 4})
TRAIN = TrainConfig(run_dir="r", tokens=1, global_batch_size=4, micro_batch_size=2)


class Modes(Enum):
    NONE, FP8 = 0, 1


@pytest.fixture
def base(monkeypatch) -> ModuleType:
    names = ["transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"]
    modules = [ModuleType(name) for name in (*names, f"{names[-1]}.base")]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    modules[-2].base = modules[-1]
    modules[-1].initialize_ub = lambda **given: vars(modules[-1]).update(given=given)
    return modules[-1]


def opened(base: ModuleType, fp8: Fp8Config | None = None, **parallel: int) -> dict:
    open_user_buffers(
        MODEL, parallel=ParallelConfig(tp_size=2, **parallel), precision=PrecisionConfig(fp8=fp8), train=TRAIN
    )
    return base.given


@pytest.mark.parametrize(("parallel", "rows"), [({}, 128), ({"cp_size": 2}, 64)])
def test_one_size_for_the_run(parallel, rows, base):
    given = opened(base, **parallel)
    assert given == {"shape": [rows, 32], "tp_size": 2, "bootstrap_backend": "nccl", "use_fp8": False}


@pytest.mark.parametrize(
    ("fp8", "modes"),
    [
        (None, [Modes.NONE]),
        (Fp8Config(), [Modes.FP8]),
        (Fp8Config(first_last_layers_bf16=True), [Modes.FP8, Modes.NONE]),
    ],
)
def test_modes_of_newer_versions(fp8, modes, base):
    base.UserBufferQuantizationMode = Modes
    given = opened(base, fp8)
    assert given["quantization_modes"] == modes and "use_fp8" not in given


def test_older_versions_are_asked_in_their_way(base):
    assert opened(base, Fp8Config())["use_fp8"] is True


def test_documents_of_one_sequence():
    import torch

    from megatron_sky.distributed import device

    device.setup()
    bounds = packed_documents(torch.tensor([0, 3, 10, 16], dtype=torch.int32), torch.device("cpu"))
    assert bounds.qkv_format == "thd" and bounds.max_seqlen_q == bounds.max_seqlen_kv == 7
    assert bounds.cu_seqlens_q.tolist() == [0, 3, 10, 16] == bounds.cu_seqlens_kv.tolist()
