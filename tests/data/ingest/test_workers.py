import subprocess
import sys

import pytest

# In a process of its own, which has no threads and no torch, as a verb's.
POOL = """
import multiprocessing, os, sys, threading
from megatron_sky.data.ingest.workers import make_pool
{before}
with make_pool(2, divmod, (1,)) as pool:
    print(pool.submit(abs, -3).result(), "gigatoken" in sys.modules)
    print(*{{type(each).__name__ for each in multiprocessing.active_children()}})
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="forks are Linux's")
def test_workers_are_forks_that_have_what_they_need():
    pytest.importorskip("gigatoken")
    assert run(POOL.format(before="")) == ["3 True", "ForkProcess"]


@pytest.mark.parametrize(
    "before",
    ["threading.Thread(target=threading.Event().wait, daemon=True).start()", "sys.modules['torch'] = threading"],
)
def test_workers_start_afresh_where_threads_may_hold_something(before):
    assert run(POOL.format(before=before)) == ["3 False", "SpawnProcess"]
