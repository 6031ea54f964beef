"""A real Slurm cluster on this machine, for the tests: munged, slurmctld, and one slurmd a node.

Each node is a process, mount, host-name and PID namespace of its own, so that `power_off` ends everything on it at
once, as a power cut does, and nothing is left when the cluster stops. All of it listens on loopback, in a fresh folder,
on free ports; the machine's own Slurm, if it has one, is not touched.
"""

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CLIENT_SECONDS = 60
START_SECONDS = 120
NUM_GPUS = 8
HOLD_SECONDS = 3.0

_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=5
MinJobAge=900
SlurmdTimeout=15
InactiveLimit=0
MailProg=/bin/true
"""


def why_not() -> str:
    """Why no cluster can be started here, in words; empty where one can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "a cluster of several nodes on one machine needs root"
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        return "this machine allows no namespaces (unshare)"
    return ""


_NAMESPACES = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


class Cluster:
    """Started by `start`, ended by `stop`; `environment` makes Slurm's commands talk to it."""

    def __init__(self, folder: Path, num_nodes: int = 2):
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.started_at = 0.0
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        self._configure()
        self._run("munged", *self._munge_options())
        wait_until((self.folder / "munge/socket").exists, START_SECONDS, "munged made its socket")
        self._run("slurmctld", "-D")
        self.started_at = time.time()
        for node in self.nodes:
            self.power_on(node)
        self.wait_for_nodes()

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM if process.args[0] != "unshare" else signal.SIGKILL)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def power_on(self, node: str) -> None:
        inside = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {node} && slurmd -D -N {node}; exit $?"
        self._run(node, inside)

    def power_off(self, node: str) -> None:
        """Ends the node and all that runs on it, as a power cut does."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    def wait_for_nodes(self) -> None:
        def all_idle() -> bool:
            states = self.client("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
            return len(states) == len(self.nodes) and set(states) == {"idle"}

        wait_until(all_idle, START_SECONDS, "all nodes are idle")

    def client(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.client("scontrol", "show", "job", "-o", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, job_id: str, *states: str, seconds: float) -> dict[str, str]:
        """Waits until the job is in one of `states`. The two minutes that Slurm holds back a requeued job are cut.

        Not to nothing: a node refuses a job that it was told to end within the same second.
        """
        held_since: list[float] = []

        def there() -> bool:
            job = self.job(job_id)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
                held_since.append(time.monotonic())
                if held_since[-1] - held_since[0] > HOLD_SECONDS:
                    self.client("scontrol", "update", f"JobId={job_id}", "StartTime=now", check=False)
            else:
                held_since.clear()
            return job["JobState"] in states

        wait_until(there, seconds, lambda: f"job {job_id} is {' or '.join(states)}: {self.job(job_id)}", pause=0.3)
        return self.job(job_id)

    def _configure(self) -> None:
        for name in ("state", "munge", "dev"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge/key").write_bytes(os.urandom(128))
        (self.folder / "munge/key").chmod(0o600)
        for number in range(NUM_GPUS):  # what Slurm hands out as a GPU must be a character device: these are /dev/null
            os.mknod(self.folder / f"dev/gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        ports = _free_ports(len(self.nodes) + 1)
        lines = [_CONF.format(folder=self.folder, port=ports[0])]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=64 Boards=1 "
                f"SocketsPerBoard=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=200000 Gres=gpu:{NUM_GPUS}\n"
            )
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE GraceTime=120 State=UP\n")
        lines.append("PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=9 State=UP\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/dev/gpu[0-{NUM_GPUS - 1}]\n")
        names = ["localhost", socket.gethostname(), *self.nodes]
        (self.folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in names))

    def _munge_options(self) -> list[str]:
        munge = self.folder / "munge"
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        return ["--foreground", "--num-threads=2", *(f"--{option}={munge / name}" for option, name in files.items())]

    def _run(self, name: str, *arguments: str) -> None:
        command = [*_NAMESPACES, "sh", "-c", *arguments] if name in self.nodes else [name, *arguments]
        with open(self.folder / f"{name}.out", "ab") as out:
            self._processes[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=_end_with_the_tests,
            )


def wait_until(true: Callable[[], bool], seconds: float, what: str | Callable[[], str], pause: float = 0.1) -> None:
    """Returns once `true()`; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not in {seconds} s: {what if isinstance(what, str) else what()}"
        time.sleep(pause)


def _end_with_the_tests() -> None:
    """Asks the kernel to kill this process when the tests' process ends, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
