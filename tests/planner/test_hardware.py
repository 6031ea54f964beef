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


def test_a_gpu_of_ones_own(tmp_path):
    entry = {"name": "mine"} | yaml.safe_load((hardware.Path(hardware.__file__).parent / "hardware.yaml").read_text())[
        "h20"
    ]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(entry), encoding="utf-8")
    assert hardware.find_gpu(str(path)).peak("bf16") == 148e12
    wrong = {**entry, "watts": -1, "volts": 3, "tflops": {"int8": 5}}
    del wrong["num_sms"]
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml has 4 problems") as error:
        hardware.find_gpu(str(path))
    for said in ("num_sms: is missing", "volts: is no field", "watts = -1: must be a number", "lacks bf16 and fp16"):
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="is no file"):
        hardware.find_gpu(str(tmp_path / "none.yaml"))


def test_every_coefficient_says_how_it_was_set():
    path = hardware.Path(hardware.__file__).parent / "coefficients.yaml"
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert set(entry) == {"value", "how"} and entry["how"], name


def test_a_format_that_a_gpu_lacks_runs_in_the_next_wider():
    assert hardware.find_gpu("a100").peak("fp8") == hardware.find_gpu("a100").peak("bf16")
    assert hardware.find_gpu("v100").peak("bf16") == 125e12
