"""The doctor: its rules on machines that this one is not, its trials on this one, and the command."""

import copy
from dataclasses import asdict
from pathlib import Path

import pytest

from megatron_sky.distributed.requirements import Requirement, compare
from megatron_sky.doctor import facts, findings, page

H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "memory_gib": 79.1,
    "capability": (9, 0),
    "peak_tflops": {"bf16": 989.4, "fp16": 989.4, "fp8": 1978.9},
}


NODE = {
    "python": "3.12.1",
    "executable": "/usr/bin/python",
    "platform": "Linux",
    "cores": 96,
    "memory_gib": 1000.0,
    "torch": "2.13.0+cu130",
    "torch_cuda": "13.0",
    "driver": "580.1",
    "gpus": [H100] * 8,
    "nvlink": 18,
    "infiniband": [{"device": "mlx5_0", "port": "1", "state": "ACTIVE", "rate": "400 Gb/sec (4X NDR)"}],
    "nccl": "2.27.3",
    "packages": dict.fromkeys(facts.PACKAGES, "9.9"),
    "requirements": [asdict(Requirement("megatron-core", ">=0.16.1,<0.20", "0.19.2"))],
    "transformer_engine_cuda": 13,
    "backend": "te",
    "backend_reason": "CUDA and Transformer Engine are present",
    "adam": "Transformer Engine's FusedAdam",
    "gradient_accumulation_fusion": True,
    "environment": {},
}


FINE = {
    "ranks": {"world_size": 8, "backend": "nccl", "ok": True, "reason": "", "all_reduce_gb_per_second": 300.0},
    "disk": {"folder": "/runs", "reason": "", "write_mb_per_second": 2000.0, "free_gb": 9000.0},
}


def judged(changed: dict | None = None, tried: dict | None = None) -> list[findings.Finding]:
    return findings.judge(copy.deepcopy(NODE) | (changed or {}), FINE | (tried or {}))


def test_a_good_node_has_nothing_to_tell():
    assert judged() == []


def with_version(name: str, tested: str, version: str) -> dict:
    return {"requirements": [asdict(compare(name, tested, version))]}


def without(*names: str) -> dict:
    return {"packages": NODE["packages"] | dict.fromkeys(names)}


def test_nltk_is_missed_where_sentences_are_split_and_nowhere_else():
    (finding,) = judged(without("nltk"))
    assert not finding.blocking and "--split-sentences" in finding.costs
    package = Path(findings.__file__).parents[1]
    users = [
        path.name
        for path in package.rglob("*.py")
        if "from nltk" in path.read_text() or "import nltk" in path.read_text()
    ]
    assert users == ["sentences.py"]


@pytest.mark.parametrize(
    ("changed", "blocking", "what"),
    [
        (without("megatron-core"), True, "megatron-core is not installed"),
        (with_version("megatron-core", "<0.20,>=0.16.1", "0.14.0"), True, "megatron-core 0.14.0 is older than tested"),
        (with_version("megatron-core", "<0.20,>=0.16.1", "0.20.0"), False, "megatron-core 0.20.0 is newer than tested"),
        (with_version("torch", ">=2.10,<2.16", "2.9.0a0+nv25.09"), True, "torch 2.9.0a0+nv25.09 is older"),
        (with_version("nltk", ">=3.9,<4", "3.8"), False, "nltk 3.8 is older"),
        ({"requirements": []}, False, "megatron-sky is not installed"),
        (without("psutil"), True, "psutil"),
        (without("nltk"), False, "nltk"),
        (without("tensorboard"), False, "tensorboard"),
        (without("transformer-engine") | {"backend": "torch"}, False, "transformer-engine is not installed"),
        (
            {"backend": "torch", "backend_reason": "Transformer Engine can't be imported (torch 2.13 ...)"},
            True,
            "can't be",
        ),
        ({"gradient_accumulation_fusion": False}, False, "fused_weight_gradient_mlp_cuda"),
        (with_version("Python", ">=3.11,<3.14", "3.10.2"), True, "Python 3.10.2"),
        (
            {"gpus": [], "torch": "2.13.0+cpu", "torch_cuda": None, "backend": "torch"},
            True,
            "torch 2.13.0+cpu (a CPU build)",
        ),
        ({"gpus": [H100, H100 | {"name": "NVIDIA H200"}]}, False, "different GPUs"),
        ({"gpus": [H100 | {"peak_tflops": None}]}, False, "the peak of NVIDIA H100 80GB HBM3 is not known"),
        ({"nvlink": 0}, False, "no NVLink"),
        ({"infiniband": [{"device": "mlx5_1", "port": "1", "state": "DOWN", "rate": "40"}]}, False, "mlx5_1/1"),
    ],
)
def test_what_is_missing_is_told_with_its_cost_and_fix(changed, blocking, what):
    found = [each for each in judged(changed) if what in each.what]
    assert found and found[0].blocking == blocking and found[0].costs and found[0].fix


def test_failed_trials_are_grave():
    ranks = {
        "world_size": 8,
        "backend": "nccl",
        "ok": False,
        "reason": "rank 3: timeout",
        "all_reduce_gb_per_second": None,
    }
    disk = FINE["disk"] | {"reason": "can't be written: Permission denied", "write_mb_per_second": None}
    found = judged(tried={"ranks": ranks, "disk": disk})
    assert [each.blocking for each in found] == [True, True] and "rank 3: timeout" in found[0].what
    slow = judged(tried={"disk": FINE["disk"] | {"write_mb_per_second": 50.0}})
    assert [each.blocking for each in slow] == [False] and "65 minutes" in slow[0].costs
    shown = page.text({"facts": NODE, "trials": {"ranks": ranks, "disk": disk}, "findings": [], "healthy": False})
    assert "FAILED, rank 3: timeout" in shown and "bf16 989.4" in shown
    assert "megatron-core       9.9, tested >=0.16.1,<0.20" in shown
