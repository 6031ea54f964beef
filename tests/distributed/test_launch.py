"""Where ranks come from, and what a failed one leaves on the screen."""

import os
import subprocess
import sys
import time

import pytest

from megatron_sky.distributed import launch
from megatron_sky.distributed.launch import RankInfo, first_host, rank_info
from megatron_sky.errors import SkyError

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_one_process_alone():
    assert rank_info({}) == RankInfo()


def test_torchrun():
    info = rank_info({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"})
    assert (info.rank, info.world_size, info.local_rank, info.local_world_size, info.from_torchrun) == (
        3,
        8,
        1,
        2,
        True,
    )


def test_srun():
    assert rank_info(SLURM) == RankInfo(9, 16, 1, 8, "gpu07", 20077)


def test_a_batch_script_without_srun_is_one_process():
    assert rank_info({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"} | {"SLURM_NTASKS": "16"}) == RankInfo()


def test_a_variable_that_is_no_number():
    with pytest.raises(SkyError, match="RANK = 'one'"):
        rank_info({"RANK": "one", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n1.site.org,n2", "n1.site.org"),
        ("n[07-09,12],m1", "n07"),
        ("rack1-[3,5]", "rack1-3"),
        ("c[1-2]-ib", "c1-ib"),
        ("rack[1-2]n[07-09]", "rack1n07"),
        ("r[3,5-6]c[0-1]n[2-4],m1", "r3c0n2"),
    ],
)
def test_first_host(nodelist, host):
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", "n[07-09", "n[7-9]]", "n[a-c]", "n 1", "n" * 50_000 + "!", ",n1"])
def test_a_node_list_that_is_none(nodelist):
    with pytest.raises(SkyError, match="is no node list"):
        first_host(nodelist)


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (SLURM | {"SLURM_PROCID": "16"}, "SLURM_PROCID = 16: must lie in 0 to 15"),
        (SLURM | {"SLURM_LOCALID": "8"}, "SLURM_LOCALID = 8: must lie in 0 to 7"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "0"}, "SLURM_STEP_NUM_TASKS = 0: must lie in 1"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many': must be a whole number"),
        (SLURM | {"SLURM_JOB_ID": "7_1"}, "SLURM_JOB_ID = '7_1'"),
        (SLURM | {"MASTER_PORT": "65536"}, "MASTER_PORT = 65536: must lie in 1 to 65535"),
        (TORCHRUN | {"RANK": "2"}, "RANK = 2: must lie in 0 to 1"),
        (TORCHRUN | {"RANK": "-1"}, "RANK = '-1': must be a whole number"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK = 2: must lie in 0 to 1"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE = 0: must lie in 1"),
    ],
)
def test_a_number_that_no_rank_has(environ, message):
    with pytest.raises(SkyError, match=message):
        rank_info(environ)


def run(code: str, nproc: int = 2, first: str = "") -> subprocess.CompletedProcess:
    """A parent that starts `nproc` ranks of a `megatron_sky` whose train verb is replaced by `code`."""
    env = os.environ | {"RANK_CODE": code, "PYTHONSTARTUP": ""}
    return subprocess.run(parent(nproc, first), env=env, capture_output=True, text=True, timeout=120, check=False)


def parent(nproc: int, first: str) -> list[str]:
    """The command of that parent, which begins with the statement `first`."""
    code = (
        f"import os, signal, sys, threading, time\n{first}\n"
        "from megatron_sky.distributed.launch import run_local\n"
        "from megatron_sky.errors import SkyError\n"
        "if __name__ == '__main__':\n"
        f"    try: run_local(sys.argv[1:], {nproc})\n"
        "    except SkyError as error: print('LAST', error); sys.exit(error.exit_code)\n"
    )
    return [sys.executable, "-c", code, "--version"]


@pytest.fixture
def broken_rank(tmp_path, monkeypatch):
    """Makes every rank run `code` before the command line is read, through a sitecustomize on its path."""

    def use(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import os, sys\nif 'RANK' in os.environ and sys.argv[:1] == ['-m']:\n    exec(os.environ['RANK_CODE'])\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
        monkeypatch.setenv("RANK_CODE", code)

    return use


COMMON = """
from megatron_sky.distributed.launch import guard
import time
rank = int(os.environ['RANK'])
def work():
    {work}
guard(work, rank)
"""


@pytest.mark.parametrize(
    ("work", "told", "code"),
    [
        (
            "mark = os.path.join(os.environ['PYTHONPATH'].split(os.pathsep)[0], 'failed')\n"
            "    if rank == 1: open(mark, 'w').close(); raise ValueError('the first cause')\n"
            "    while not os.path.exists(mark): time.sleep(0.01)\n"
            "    time.sleep(0.3); raise RuntimeError('gloo: Connection closed by peer')",
            "LAST rank 1: ValueError: the first cause",
            1,
        ),
        (
            "from megatron_sky.errors import DataError\n"
            "    if rank == 0: raise DataError('file x is empty')\n    time.sleep(60)",
            "LAST rank 0: file x is empty",
            3,
        ),
        (
            "import signal\n    if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(60)",
            "LAST rank 1: killed by SIGKILL",
            1,
        ),
    ],
)
def test_the_first_cause_and_its_rank_come_last(work, told, code, broken_rank):
    broken_rank(COMMON.format(work=work))
    start = time.monotonic()
    done = run(os.environ["RANK_CODE"])
    assert time.monotonic() - start < 60
    assert done.returncode == code, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith(told), done.stdout + done.stderr


RANK = """
import time
from megatron_sky.distributed import launch
{begin}
open(os.environ['PIDS'] + f'/{{os.getpid()}}', 'w').close()
{wait}
"""
HOLD = "held = launch.hold_stop_signals(); held.__enter__(); launch.watch_launcher()"
SIGNAL_ITSELF = """
asked = threading.Event()
def soon():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL or len(os.listdir(os.environ['PIDS'])) < {ranks}:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
    asked.set()
threading.Thread(target=soon).start()
"""


STARTS_LATE = """
from megatron_sky.distributed import launch
start = launch._start
def late(*arguments):
    asked.wait()
    return start(*arguments)
launch._start = late
"""


@pytest.fixture
def pids(tmp_path, monkeypatch):
    """The folder in which ranks leave a file named as their process."""
    folder = tmp_path / "pids"
    folder.mkdir()
    monkeypatch.setenv("PIDS", str(folder))
    return folder


@pytest.mark.slow
def test_a_request_before_there_are_ranks_reaches_them(broken_rank, pids):
    told = "launch.leave_with(0, f'asked by {launch.pending_stop_signals()}', 75)"
    broken_rank(RANK.format(begin=HOLD, wait=told))
    done = run(os.environ["RANK_CODE"], first=SIGNAL_ITSELF.format(ranks=0) + STARTS_LATE)
    assert done.returncode == 75, done.stderr
    assert done.stdout.strip().endswith("asked by [15]")


@pytest.mark.slow
def test_a_request_that_ends_a_rank_which_can_not_act_on_it_is_no_failure(broken_rank, pids):
    broken_rank(RANK.format(begin="", wait="time.sleep(60)"))
    done = run(os.environ["RANK_CODE"], first=SIGNAL_ITSELF.format(ranks=2))
    assert done.returncode == 75 and "stopped by SIGTERM" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_rank_that_starts_up_does_not_wait_for_one_that_has_failed(broken_rank, pids):
    fails = "if os.environ['RANK'] == '1': launch.leave_with(1, 'no data', 3)\ntime.sleep(100)"
    broken_rank(RANK.format(begin=HOLD, wait=fails))
    start = time.monotonic()
    done = run(os.environ["RANK_CODE"])
    assert done.returncode == 3 and done.stdout.strip().endswith("LAST rank 1: no data"), done.stdout + done.stderr
    assert time.monotonic() - start < 25  # the launcher alone would kill it after 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begin", "wait"),
    [
        (HOLD, "time.sleep(100)"),
        (
            f"{HOLD}; launch.mark_startup_complete()",
            "while not launch._pending: time.sleep(0.2)",
        ),  # it is asked, as by a signal
    ],
)
def test_ranks_do_not_outlive_their_launcher(begin, wait, broken_rank, pids):
    broken_rank(RANK.format(begin=begin, wait=wait))
    job = subprocess.Popen(parent(2, ""), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(pids.iterdir())) == 2)
    job.kill()
    job.wait()
    wait_until(lambda: not any(os.path.exists(f"/proc/{each.name}") for each in pids.iterdir()))


def wait_until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


OFFLINE = """
import sys
from megatron_sky.distributed import launch
if sys.argv[1] == "hide":
    launch.hide_failed_lookups()
import torch.distributed as dist
server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
dist.TCPStore("127.0.0.1", server.port, is_master=False).set("name", "value")
print(server.get("name"))
"""


@pytest.mark.parametrize("hide", ["hide", "show"])
def test_a_machine_without_a_network_is_not_complained_of(hide):
    """The lines that are hidden are there: torch's next release may look up no names."""
    alone = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody give a process a network of its own (unshare --net, ip)")
    environ = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    command = [*alone, sys.executable, "-c", OFFLINE, hide]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.stdout == "b'value'\n", done.stderr
    assert ("cannot be retrieved" in done.stderr) == (hide == "show")


def test_ranks_get_the_users_thread_count_or_a_share_of_the_cores(tmp_path, monkeypatch):
    """Every verb that starts ranks starts them so; what a rank makes of it: `device.choose_threads`."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch._environment(1, 4, tmp_path)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launch, "share_of_cores", lambda nproc: 40 // nproc)
    assert launch._environment(1, 4, tmp_path)["OMP_NUM_THREADS"] == "10"
