"""The hardware and coefficient files."""

import pytest
import yaml

from megatron_sky.errors import ConfigError
from megatron_sky.monitor.throughput import gpu_peak
from megatron_sky.planner import hardware


@pytest.mark.parametrize("name", ["a800", "a100", "h100", "h800", "h200", "h20", "b200", "gb200", "l40s", "4090"])
def test_known_gpus(name):
    gpu = hardware.find_gpu(f" {name.upper()}")
    assert gpu.source and gpu.peak("bf16") > 1e14


@pytest.mark.parametrize("name", ["v100", "a100", "a800", "h100", "h100 pcie", "h200", "h20", "b200", "gb200", "l40s"])
def test_peaks_are_those_by_which_a_run_is_measured(name):
    gpu, logged = hardware.find_gpu(name.replace(" ", "-")), gpu_peak(name)
    assert gpu.peak("fp16") == pytest.approx(logged.fp16 * 1e12, rel=1e-3)
    if logged.fp8:
        assert gpu.peak("fp8") == pytest.approx(logged.fp8 * 1e12, rel=1e-3)


def test_an_unknown_gpu_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean .*h100") as error:
        hardware.find_gpu("h1000")
    assert "a800" in str(error.value)


def test_every_coefficient_says_how_it_was_set():
    path = hardware.Path(hardware.__file__).parent / "coefficients.yaml"
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert set(entry) == {"value", "how"} and entry["how"], name


def test_a_format_that_a_gpu_lacks_runs_in_the_next_wider():
    assert hardware.find_gpu("a100").peak("fp8") == hardware.find_gpu("a100").peak("bf16")
    assert hardware.find_gpu("v100").peak("bf16") == 125e12
