"""The library of fp32 products is chosen by the processor, and kept only where it is exact."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_sky.distributed import cpu_products


@pytest.fixture(autouse=True)
def torchs_own_setting():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def served_badly(monkeypatch, badly: bool = True) -> None:
    monkeypatch.setattr(cpu_products, "_is_served_badly", lambda: badly)


def test_it_is_on_where_products_stay_exact(monkeypatch):
    served_badly(monkeypatch)
    monkeypatch.setattr(cpu_products, "_error_of_a_product", lambda: 4e-7)
    assert cpu_products.choose_library()
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_cpu_that_computes_in_bf16_keeps_torchs_own(monkeypatch):
    served_badly(monkeypatch)
    monkeypatch.setattr(cpu_products, "_error_of_a_product", lambda: 3e-3)
    assert not cpu_products.choose_library()
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_error_tells_bf16_from_fp32(monkeypatch):
    assert cpu_products._error_of_a_product() < cpu_products._EXACT / 10
    product = torch.Tensor.__matmul__
    rounded = lambda a, b: product(a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype))  # noqa: E731
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: (product if a.dtype == torch.float64 else rounded)(a, b)
    )
    assert cpu_products._error_of_a_product() > 100 * cpu_products._EXACT


def test_what_the_user_has_set_stays(monkeypatch):
    served_badly(monkeypatch)
    torch.set_float32_matmul_precision("high")
    assert not cpu_products.choose_library()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(
    ("capability", "vendor", "is_badly"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", "", False),
    ],
)
def test_the_rule_is_the_processors(capability, vendor, is_badly, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.__config__, "show", lambda: "BLAS_INFO=mkl, ")
    monkeypatch.setattr(cpu_products, "vendor", lambda: vendor)
    assert cpu_products._is_served_badly() == (is_badly and torch.backends.mkldnn.is_available())


def test_the_vendor_is_read_from_the_kernel():
    if not Path("/proc/cpuinfo").is_file():
        pytest.skip("no /proc/cpuinfo")
    assert cpu_products.vendor() in Path("/proc/cpuinfo").read_text()


def test_a_run_trains_by_it_and_says_so():
    """The choice is made when the device is set up, before anything is computed."""
    script = (
        "from megatron_sky.distributed import cpu_products, device\n"
        "cpu_products._is_served_badly = lambda: True\n"
        "device.setup(num_threads=1)\n"
        "import torch\n"
        "print(device.products_library(), torch.get_float32_matmul_precision())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    exact = done.stdout.split()
    assert exact in (["oneDNN", "medium"], ["torch's", "default", "highest"])


def test_attention_is_by_torchs_default_both_ways():
    """And leaves the choice as it was, for the backward of what comes before it too."""
    torch.set_float32_matmul_precision("medium")
    seen = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(torch.get_float32_matmul_precision())
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.get_float32_matmul_precision())
            return grad

    x = torch.ones(3, requires_grad=True)
    before = Seen.apply(x)
    out = cpu_products.attention(Seen.apply, before)
    assert seen == ["medium", "highest"] and torch.get_float32_matmul_precision() == "medium"
    out.sum().backward()
    assert seen == ["medium", "highest", "highest", "medium"] and torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    assert cpu_products.attention(Seen.apply, x).grad_fn is not None and seen[-1] == "highest"
