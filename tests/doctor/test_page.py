"""The doctor's report as text, of a node with GPUs and of a machine without."""

from megatron_sky.doctor import page
from tests.doctor.test_findings import FINE, NODE


def shown(facts: dict | None = None, trials: dict | None = None, findings: list | None = None) -> str:
    report = {"facts": NODE | (facts or {}), "trials": FINE | (trials or {}), "findings": findings or []}
    return page.text(report | {"healthy": not findings})


def test_a_node():
    text = shown()
    for part in (
        "NVIDIA H100 80GB HBM3, 79.1 GiB, compute capability 9.0",
        "NVLinks 18 between two GPUs, InfiniBand mlx5_0 400 Gb/sec (4X NDR) ACTIVE",
        "8 over nccl talk; all-reduce 300 GB/s",
        "/runs: writes 2000 MB/s, 9000 GB free",
    ):
        assert part in text
    assert text.count("\ngpu ") == 8 and text.endswith("\nhealthy")


def test_a_machine_without_a_gpu():
    text = shown({"gpus": [], "nvlink": None, "infiniband": [], "nccl": None, "torch_cuda": None, "driver": None})
    for part in (
        "none: everything runs on the CPU",
        "NCCL none, NVLinks unknown, InfiniBand none",
        "CUDA none, driver none",
    ):
        assert part in text


def test_a_gpu_whose_peak_is_not_known():
    gpu = NODE["gpus"][0] | {"peak_tflops": None}
    assert "peak TFLOP/s: unknown" in shown({"gpus": [gpu]})
    gpu["peak_tflops"] = {"bf16": 100.0, "fp8": None}
    assert "peak TFLOP/s: bf16 100\n" in shown({"gpus": [gpu]})


def test_problems_and_notes():
    finding = {"blocking": True, "what": "no torch", "costs": "all", "fix": "install it"}
    text = shown(findings=[finding, finding | {"blocking": False, "what": "slow"}])
    assert "PROBLEM no torch\n        costs: all\n        fix: install it\nnote    slow" in text
    assert text.endswith("this machine can't train as it is")
