"""What the C library keeps of freed memory: in processes of their own, since it can't be taken back."""

import ctypes
import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from megatron_sky.distributed import cpu_memory
kept = cpu_memory.keep_freed_blocks()
def use():
    blocks = [torch.ones(1 << 20) for _ in range(16)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(env: dict[str, str]) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_blocks_are_used_again_unless_the_environment_says_how(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    kept, faults = _faults(dict(os.environ))
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    own, many = _faults(dict(os.environ, MALLOC_MMAP_THRESHOLD_="131072"))
    assert own == "False"
    assert faults < many / 4


GIVEN_BACK = """
import psutil
from megatron_sky.distributed import cpu_memory
assert cpu_memory.keep_freed_blocks()
import torch
blocks = [torch.ones(1 << 20) for _ in range(16)]
blocks.clear()
before = psutil.Process().memory_info().rss
cpu_memory.give_back_freed_blocks()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's")
def test_freed_blocks_are_given_back_when_asked_for(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 48 << 20
