"""Runs the tests on what people get: a fresh clone and a fresh environment for every row, the newest of everything.

    .ci/run                 all rows but the image's, one after the other
    .ci/run --all           the image's too
    .ci/run --row b         one row (may be given more than once)
    .ci/run --list          what the rows are

PYTHON names the interpreter of row a, for a machine whose own is not /usr/bin/python3. The other rows look for theirs
on PATH and in the folders of pyenv and uv, and are skipped where there is none. As root on a machine with apt-get, the
programs that tests start (Slurm, a builder of images) are installed first; without them those tests skip.
"""

import argparse
import dataclasses
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""Programs that tests start, and Debian's packages that bring them."""

FREE_GB = 16
"""Room that a row needs: torch's CUDA build takes 6 GB installed and half of that packed, and row a's is kept."""

INTERPRETERS = (
    "{pyenv}/versions/{version}.*/bin/python{version}",
    "{home}/.local/share/uv/python/cpython-{version}*/bin/python{version}",
    "/usr/local/bin/python{version}",
    "/usr/bin/python{version}",
)
"""Where an interpreter may lie that PATH does not show, or shows as a shim that refuses to run."""

REPORT = """
import importlib.metadata as m, platform
print(platform.python_version(), m.version("torch"), m.version("megatron-core"))
"""

MOST = ("pytest", "-m", "not slow or every_row")


class StepFailed(Exception):
    """A row can't go on."""


class Skipped(Exception):
    """This machine lacks what a row needs."""


@dataclasses.dataclass
class Row:
    """One way to install the project, and what runs there."""

    name: str
    title: str
    pythons: Sequence[str]
    """Versions to look for, the first that runs is taken; none: PYTHON, else Debian's own."""
    run: Callable
    versions: str = ""
    tests: str = "-"
    problems: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0
    skipped: str = ""


class Place:
    """A row's folder, with a clean clone in it and the environment that its commands see."""

    def __init__(self, row: Row, folder: Path, caches: Path, other_python: Path | None):
        self.row, self.folder, self.clone = row, folder, folder / "megatron_sky"
        free = shutil.disk_usage(folder).free / 1e9
        if free < FREE_GB:
            raise StepFailed(f"{folder} has {free:.0f} GB free, a row needs {FREE_GB}; TMPDIR chooses another disk")
        self.python = interpreter(row)
        caps = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "UV_OVERRIDE")
        left_out = (*caps, "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MEGATRON_SKY_OTHER_PYTHON")
        left_out += ("PYTHONDONTWRITEBYTECODE",)  # else each of the many processes compiles what it imports
        self.env = {name: value for name, value in os.environ.items() if name not in left_out}
        self.env |= {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
        self.env |= {"UV_COMPILE_BYTECODE": "1"}
        self.env |= {"PIP_CACHE_DIR": str(caches / "pip"), "UV_CACHE_DIR": str(folder / "uv-cache")}
        self.env |= {"PYTHONUNBUFFERED": "1"}
        if other_python is not None:
            self.env["MEGATRON_SKY_OTHER_PYTHON"] = str(other_python)
        self.enter(folder / "venv")
        self("git", "clone", "--quiet", ROOT, self.clone, cwd=folder)
        if (ROOT.parent / "shared").is_dir():  # material that some tests read beside the checkout, where there is any
            (folder / "shared").symlink_to(ROOT.parent / "shared")

    def enter(self, venv: Path) -> None:
        """Programs of this environment come first from here on."""
        self.venv = venv
        self.env["PATH"] = os.pathsep.join([str(venv / "bin"), os.environ["PATH"]])

    def __call__(self, *command: object, cwd: Path | None = None, goes_on: bool = False) -> str:
        """Runs a command, shown as it goes; its last line. A failure ends the row, or with `goes_on` is only noted."""
        words = [str(word) for word in command]
        print(f"\n[{self.row.name}] $ {' '.join(words)}", flush=True)
        last = ""
        with subprocess.Popen(
            words,
            cwd=cwd or self.clone,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    last = line.strip() or last
            except BaseException:  # what it started goes with it
                os.killpg(process.pid, signal.SIGTERM)
                raise
        if process.returncode:
            problem = f"{' '.join(words)}: exit code {process.returncode}"
            if not goes_on:
                raise StepFailed(problem)
            self.row.problems.append(problem)
        return last

    def quickstart(self, *launcher: str, cwd: Path | None = None) -> None:
        self(*launcher, "megatron-sky", "quickstart", cwd=cwd, goes_on=True)
        self.row.versions = self(*launcher, "python", "-c", REPORT, cwd=cwd)

    def pytest(self, *command: str) -> None:
        result = self(*command, goes_on=True).strip("= ")
        self.row.tests = result if self.row.tests == "-" else f"{self.row.tests}; {result}"


def from_a_checkout(at: Place) -> None:
    """README's own two commands, the linters, and the whole suite."""
    at(at.python, "-m", "venv", at.venv)
    at("pip", "install", "--quiet", "-e", ".")
    at.quickstart()
    at("pip", "install", "--quiet", "-e", ".[dev]")
    at("pip", "install", "--quiet", "-e", ".[crawl,perplexity]")  # its packages are too new for row c
    at("ruff", "check", ".", goes_on=True)
    at("ruff", "format", "--check", ".", goes_on=True)
    at("mypy", "megatron_sky", goes_on=True)
    at.pytest("pytest", "--ignore", "tests/test_images.py")
    at("pip", "install", "--quiet", "-e", ".[te-rehearsal]")  # last: peft and others can't be imported beside it
    at.pytest("pytest", "-m", "te")


def the_image(at: Place) -> None:
    """The image, built and run by whichever engine is there; it takes 30 GB of disk with torch's CUDA build."""
    at(at.python, "-m", "venv", at.venv)
    at("pip", "install", "--quiet", "-e", ".[dev]")
    at.pytest("pytest", "-n", "0", "tests/test_images.py")


def with_uv(at: Place) -> None:
    """README's lines for uv."""
    at.enter(at.clone / ".venv")
    install_uv(at)
    at.env["UV_PYTHON"] = str(at.python)
    at.quickstart("uv", "run")
    at.pytest("uv", "run", "--extra", "dev", *MOST)


def lowest(at: Place) -> None:
    """The lower bound of every requirement in setup.py, and the newest of what those require."""
    install_uv(at)
    at("uv", "venv", "--quiet", "--python", at.python, at.venv)
    at.env["VIRTUAL_ENV"] = str(at.venv)
    at("uv", "pip", "install", "--quiet", "--resolution", "lowest-direct", "-e", ".")
    at.quickstart()
    at("uv", "pip", "install", "--quiet", "--resolution", "lowest-direct", "-e", ".[dev]")
    at.pytest(*MOST)


def as_a_wheel(at: Place) -> None:
    """The wheel alone: quickstart in an empty folder, and the tests in a clone whose own package is gone."""
    at(at.python, "-m", "venv", at.venv)
    at("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", at.folder, ".")
    (wheel,) = at.folder.glob("*.whl")
    at("pip", "install", "--quiet", wheel)
    empty = at.folder / "empty"
    empty.mkdir()
    at.quickstart(cwd=empty)
    at("pip", "install", "--quiet", f"{wheel}[dev]")
    shutil.rmtree(at.clone / "megatron_sky")
    at.pytest(*MOST, "--ignore", "tests/test_architecture.py", "--ignore", "tests/test_images.py")  # read its source


ROWS = [
    Row("a", "Debian's own Python, pip install -e: the whole suite without the image", (), from_a_checkout),
    Row("b", "a newer Python, uv sync and uv run: all but the slowest tests", ("3.13", "3.12"), with_uv),
    Row("c", "the lower bounds, by uv: all but the slowest tests", (), lowest),
    Row("d", "the wheel, outside the checkout: all but the slowest tests", ("3.12", "3.13", "3.11"), as_a_wheel),
    Row("i", "the image, built and run", (), the_image),
]


def install_uv(at: Place) -> None:
    """uv, in an environment of its own."""
    venv = at.folder / "uv"
    at(at.python, "-m", "venv", venv)
    at(venv / "bin/pip", "install", "--quiet", "uv")
    at.env["PATH"] += os.pathsep + str(venv / "bin")


def interpreter(row: Row) -> Path:
    """The row's Python: tried, since a shim on PATH may name a version that is not switched on."""
    if not row.pythons:
        python = Path(os.environ.get("PYTHON") or "/usr/bin/python3")
        if not runs(python):
            raise StepFailed(f"{python} does not run, or can't make environments; PYTHON names another (python3-venv)")
        return python
    for version in row.pythons:
        for path in candidates(version):
            if runs(path, version):
                return path
    raise Skipped(f"no Python {' or '.join(row.pythons)} that runs, on PATH or in the folders of pyenv and uv")


def candidates(version: str) -> Iterator[Path]:
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    pyenv = os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv"
    for pattern in INTERPRETERS:
        yield from map(Path, sorted(glob.glob(pattern.format(pyenv=pyenv, home=Path.home(), version=version))))


def runs(python: Path, version: str = "") -> bool:
    script = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0 and (not version or done.stdout.strip() == version)


def install_programs() -> None:
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=search_path())]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"not installed (that needs apt-get and root), tests that need them skip: {', '.join(missing)}")
        return
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        subprocess.run(["apt-get", *words], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def search_path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"])


def run_row(row: Row, folder: Path, other_python: Path | None) -> Path | None:
    """Runs one row; its interpreter, if it got that far."""
    print(f"\n=== row {row.name}: {row.title}", flush=True)
    started = time.monotonic()
    at = None
    (folder / row.name).mkdir()
    try:
        at = Place(row, folder / row.name, folder / "caches", other_python)
        row.run(at)
    except StepFailed as error:
        row.problems.append(str(error))
    except Skipped as reason:
        row.skipped = str(reason)
    row.seconds = time.monotonic() - started
    python = at and at.venv / "bin/python"
    return python if python and python.exists() else None


def table(rows: list[Row]) -> None:
    lines = [("row", "python", "torch", "megatron-core", "seconds", "tests")]
    for row in rows:
        versions = row.versions.split() if len(row.versions.split()) == 3 else ["-"] * 3
        lines.append((row.name, *versions, f"{row.seconds:.0f}", "skipped" if row.skipped else row.tests))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row.skipped:
            print(f"row {row.name} was skipped: {row.skipped}")
        for problem in row.problems:
            print(f"row {row.name} failed: {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="this row alone")
    parser.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--list", action="store_true", help="say what the rows are, and end")
    asked = parser.parse_args()
    if asked.list:
        for row in ROWS:
            print(f"{row.name}  {row.title}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    names = [row.name for row in ROWS] if asked.all else asked.row or [row.name for row in ROWS if row.name != "i"]
    rows = [row for row in ROWS if row.name in names]
    install_programs()
    python_of_a = None
    with tempfile.TemporaryDirectory(prefix="megatron_sky_ci_", ignore_cleanup_errors=True) as name:
        for row in rows:
            python = run_row(row, Path(name), python_of_a)
            if row.name == "a":  # kept: the other rows hand their checkpoints to it and take its own
                python_of_a = python
            else:
                shutil.rmtree(Path(name) / row.name)
    table(rows)
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
