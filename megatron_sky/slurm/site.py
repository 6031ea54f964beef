"""The site profile: what differs from cluster to cluster, said once in `~/.config/megatron_sky/site.yaml`."""

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import read_text
from megatron_sky.records import dotted_key, problem_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Positive = Annotated[int, Field(ge=1)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
TIME_PATTERN = r"^(\d+-)?\d+(:\d{1,2}){0,2}$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Container(_Section):
    """The image that jobs run in."""

    image: str | None = Field(
        None, description="pyxis: a .sqsh file or a registry's name; apptainer: a .sif file. null: no container."
    )
    kind: Literal["pyxis", "apptainer"] = Field("pyxis", description="What runs it; a .sif file always apptainer.")
    mounts: tuple[str, ...] = Field((), description="Folders it sees, as /data:/data. The working folder always is.")
    flags: tuple[str, ...] = Field((), description="More flags of srun (pyxis) or of apptainer exec.")

    @property
    def is_apptainer(self) -> bool:
        return self.kind == "apptainer" or str(self.image).endswith(".sif")


class Site(_Section):
    """A cluster, as its users must name it. Every field has a default that suits a plain GPU cluster."""

    partition: str | None = Field(None, description="Partition of training and evaluation; null: the cluster's own.")
    cpu_partition: str | None = Field(None, description="Partition of jobs that need no GPU; null: partition.")
    account: str | None = Field(None, description="Account that is charged.")
    qos: str | None = Field(None, description="Quality of service.")
    gpus_per_node: int = Field(8, ge=0, description="GPUs of a node; 0: a cluster without.")
    tasks_per_node: Positive | None = Field(None, description="Processes a node; null: gpus_per_node, or 1 without.")
    cpus_per_task: Positive | None = Field(None, description="Cores of each process; null: what the cluster gives.")
    exclusive: bool = Field(True, description="Training takes whole nodes.")
    time: str = Field("24:00:00", pattern=TIME_PATTERN, description="Time limit of a training job, as Slurm writes it.")
    sbatch: tuple[str, ...] = Field((), description='More options of sbatch, as "--mem=0".')
    modules: tuple[str, ...] = Field((), description="Modules to load.")
    setup: tuple[str, ...] = Field((), description="Shell lines to run first, as `source venv/bin/activate`.")
    environment: dict[Variable, str] = Field({}, description="Environment variables of the jobs.")
    interface: str | None = Field(None, description="Network interface of gloo and of NCCL's first contact, as ib0.")
    python: str | None = Field(None, description="Interpreter; null: the one that submits, or python3 in a container.")
    container: Container = Field(Container(), description="The image that jobs run in.")
    max_requeues: int = Field(3, ge=0, description="A job that crashes or hangs is started again this often, at most.")


def in_seconds(time: str) -> int:
    """A time limit as Slurm writes it, `minutes`, `minutes:seconds`, `hours:minutes:seconds` or `days-hours...`, in
    seconds; 0 stands for no limit."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def default_path() -> Path:
    """`~/.config/megatron_sky/site.yaml`, or where XDG_CONFIG_HOME says."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "megatron_sky/site.yaml"


def load_site(path: Path | None) -> Site:
    """The profile in `path`; None: the default file, or the defaults where there is none. Raises ConfigError."""
    import yaml

    from megatron_sky.config import strict_yaml

    file = path or default_path()
    if path is None and not file.is_file():
        return Site()
    try:
        given = strict_yaml.load(read_text(file), str(file)) or {}
        return Site.model_validate(given)
    except OSError as error:
        raise ConfigError(Problem(str(file), f"can't be read: {error.strerror}", "give --site FILE")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(str(file), f"is not valid YAML: {error}", "fix the file at that place")) from None
    except ValidationError as error:
        raise ConfigError([_problem(file, detail) for detail in error.errors()]) from None


def overridden(site: Site, *, image: str | None, **given) -> Site:
    """`site` with what the command line gives (None: nothing) in its place. Raises ConfigError."""
    fields = site.model_dump()
    fields |= {name: value for name, value in given.items() if value is not None}
    if image is not None:
        fields["container"]["image"] = image
    try:
        return Site.model_validate(fields)
    except ValidationError as error:
        raise ConfigError([_problem("the command line", detail) for detail in error.errors()]) from None


def _problem(file: Path | str, error: "ErrorDetails") -> Problem:
    dotted = dotted_key(error["loc"])
    section = Container if dotted.startswith("container.") else Site
    leaf = dotted.removeprefix("container.")
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(leaf, section.model_fields, n=1)
        fix = f"did you mean {close[0]}?" if close else f"known are {', '.join(section.model_fields)}"
    else:
        field = section.model_fields.get(leaf.split(".")[0])
        fix = f"give what it stands for: {field.description}" if field else "write it as a mapping of keys"
    return problem_of(error, f"{file}: {dotted}", fix)
