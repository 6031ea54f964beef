"""A job's script: one of `slurm/*.sbatch` with its site part filled in. Pure: text in, text out.

The scripts work as they stand; between their two `# ----` lines is all that differs from site to site, and that part
alone is written anew here. Everything below it, which does the work, is the same text in both.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.control import find_control
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.slurm.site import Container, Site

BEGIN = "# ---- site: all that differs from cluster to cluster ----\n"
END = "# ---- end of site ----\n"


@dataclass(frozen=True)
class Job:
    """What one job runs and asks for. `script` is the name of a file in slurm/, without its ending."""

    script: str
    name: str
    arguments: tuple[str, ...]
    folder: str
    """Working folder, an absolute path: relative paths of recipe and arguments start there."""
    output: str
    """File of what the batch script says, in sbatch's spelling (%j: the job's number; see `as_output`)."""
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    exclusive: bool = False
    array: str | None = None
    signal_seconds: int | None = None
    """USR1 reaches the ranks this long before the time limit."""


def scripts() -> Path:
    """The folder of the scripts: `slurm/` of a checkout, or its copy in an installed package."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "slurm"
    return checkout if (checkout / "train.sbatch").is_file() else package / "slurm_scripts"


def as_output(path: str | Path) -> str:
    """A path as it is written in `Job.output`: what Slurm would take for one of its symbols stands for itself."""
    return str(path).replace("%", "%%")


def render(job: Job, site: Site) -> str:
    """The script of `job` on `site`."""
    text = (scripts() / f"{job.script}.sbatch").read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    old, end, body = rest.partition(END)
    assert begin and end, f"{job.script}.sbatch: has no site part"
    known = settings(job, site)
    names = re.findall(r"^([A-Z_]+)=", old, re.M)
    given = options(job, site)
    for option in given:
        if control := find_control(option):  # a line end would begin a command of the script
            raise ConfigError(Problem(f"sbatch {option!r}", f"holds the control character {control}", "leave it out"))
    lines = [
        *(f"#SBATCH {option}" for option in given),
        *(f"{name}={known[name]}" for name in names),
        *(f"module load {shlex.quote(module)}" for module in site.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()),
        *site.setup,
        f"set -- {shlex.join(job.arguments)}",
    ]
    return head + begin + "\n".join(lines) + "\n" + end + body


def options(job: Job, site: Site) -> list[str]:
    """sbatch's options of `job`, the site's own last: of two that contradict each other sbatch takes the last."""
    needs_gpu_nodes = job.gpus_per_node > 0 or site.cpu_partition is None
    wanted = {
        "job-name": job.name,
        "chdir": job.folder,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_per_node,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": site.cpus_per_task,
        "time": site.time,
        "partition": site.partition if needs_gpu_nodes else site.cpu_partition,
        "account": site.account,
        "qos": site.qos,
        "array": job.array,
        "signal": None if job.signal_seconds is None else f"USR1@{job.signal_seconds}",
        "output": job.output,
    }
    flags = ["--exclusive"] if job.exclusive else []
    given = [f"--{name}={_quoted(str(value))}" for name, value in wanted.items() if value is not None]
    return [*given, *flags, *site.sbatch]


def _quoted(value: str) -> str:
    """A value as sbatch reads it from a script's comments: its own rules, which are not the shell's."""
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def settings(job: Job, site: Site) -> dict[str, str]:
    """The scripts' shell variables, quoted for bash."""
    flags, command = _container(job, site.container)
    return {
        "PYTHON": shlex.quote(site.python or ("python3" if site.container.image else sys.executable)),
        "CONTAINER_FLAGS": f"({shlex.join(flags)})",
        "CONTAINER_COMMAND": f"({shlex.join(command)})",
        "INTERFACE": shlex.quote(site.interface) if site.interface else "",
        "MAX_REQUEUES": str(site.max_requeues),
    }


def _container(job: Job, container: Container) -> tuple[list[str], list[str]]:
    """(srun's flags, the words before the program): pyxis has only the first, apptainer only the second."""
    if container.image is None:
        return [], []
    mounts = [f"{job.folder}:{job.folder}", *container.mounts]
    if container.is_apptainer:
        gpus = ["--nv"] if job.gpus_per_node else []
        binds = [word for mount in mounts for word in ("--bind", mount)]
        return [], ["apptainer", "exec", *gpus, *binds, "--pwd", job.folder, *container.flags, container.image]
    flags = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
    return [*flags, f"--container-workdir={job.folder}", *container.flags], []
