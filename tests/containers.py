"""Images for tests: whichever engine is here (docker, podman, buildah), and a stand-in for NVIDIA's PyTorch image.

The stand-in is a minimal Debian with Python and pip, to which the torch of the running interpreter is given, held by
PIP_CONSTRAINT as NVIDIA's image holds its own.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}  # Debian's releases by their Python
PROGRAMS = ("debootstrap", "unshare", "ip")
CONSTRAINT = "/etc/pip/constraint.txt"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
STAND_IN = f"""
FROM scratch
COPY . /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    PIP_CONSTRAINT={CONSTRAINT} PIP_CERT=/{CERTIFICATES}
"""
# Mounts and the network end with the namespaces that the command gets. $0: the image's root; $1: ro or rw.
ENTER = """
ip link set lo up &&
if [ "$1" = ro ]; then
    mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" &&
    mount -t tmpfs tmpfs "$0/tmp" && mount -t tmpfs tmpfs "$0/run"
fi && shift && exec "$@"
"""


class Unavailable(Exception):
    """Why no image can be built here."""


class Engine:
    """docker or podman: they take the same arguments."""

    BUILD = ()

    def __init__(self, program: str):
        self.program = program

    def build(self, context: Path, tag: str, *arguments: str) -> None:
        self._do("build", *self.BUILD, "--network=host", f"--tag={tag}", *arguments, str(context))

    def run(
        self,
        image: str,
        *command: str,
        user: str | None = None,
        home: str | None = None,
        work: Path | None = None,
        entrypoint: str | None = None,
        read_only: bool = False,
    ) -> subprocess.CompletedProcess:
        """The image's entry point with `command`, without a network. `read_only`: but for /tmp and `work` at /work."""
        options = ["--rm", "--network=none", "--ipc=host"]
        options += [f"--user={user}"] if user else []
        options += [f"--env=HOME={home}"] if home else []
        options += [f"--volume={work}:/work"] if work else []
        options += [f"--entrypoint={entrypoint}"] if entrypoint else []
        options += ["--read-only", "--tmpfs=/tmp"] if read_only else []
        return _run([self.program, "run", *options, image, *command])

    def remove(self, image: str) -> None:
        self._do("rmi", "--force", image)

    def answers(self) -> bool:
        return shutil.which(self.program) is not None and _run([self.program, "info"]).returncode == 0

    def _do(self, *arguments: str) -> str:
        done = _run([self.program, *arguments])
        assert done.returncode == 0, f"{self.program} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()


class Buildah(Engine):
    """Builds, and runs commands in what it built; no entry point, no other network and no read-only root by itself."""

    BUILD = ("--layers=false",)

    def run(self, image, *command, user=None, home=None, work=None, entrypoint=None, read_only=False):
        container = self._do("from", "--pull-never", image)
        try:
            root = self._do("mount", container)
            config = json.loads(self._do("inspect", container))["OCIv1"]["config"]
            options = [f"--user={user}"] if user else []
            options += [f"--env=HOME={home}"] if home else []
            options += [f"--volume={work}:/work"] if work else []
            first = [entrypoint] if entrypoint else config["Entrypoint"]
            inside = ["unshare", "--mount", "--net", "sh", "-c", ENTER, root, "ro" if read_only else "rw"]
            return _run([*inside, "buildah", "run", *options, container, "--", *first, *command])
        finally:
            self._do("rm", container)


def engine() -> Engine:
    """The first of docker, podman and buildah that answers; CONTAINER_ENGINE names one. Raises Unavailable."""
    engines = [Engine("docker"), Engine("podman"), Buildah("buildah")]
    named = [each for each in engines if each.program == os.environ.get("CONTAINER_ENGINE", each.program)]
    for each in named:
        if each.answers():
            return each
    raise Unavailable(f"no container engine that answers: {', '.join(each.program for each in named)}")


def build_stand_in(engine: Engine, tag: str) -> None:
    """Builds `tag` as described above. Raises Unavailable where Debian can't be installed into a folder."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        raise Unavailable(f"the base needs root and {', '.join(missing or PROGRAMS)}")
    suite = SUITES.get(sys.version_info[:2])
    if suite is None:
        raise Unavailable("no release of Debian has this interpreter's Python, whose torch would go into the image")
    with TemporaryDirectory(prefix="megatron_sky_") as name:
        folder = Path(name)
        include = "--include=python3,python3-pip,ca-certificates"
        done = _run(["debootstrap", "--variant=minbase", include, suite, str(folder / "root")])
        if done.returncode != 0:
            raise Unavailable(f"Debian was not installed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        _finish(folder / "root")
        (folder / "Dockerfile").write_text(STAND_IN, encoding="utf-8")
        engine.build(folder / "root", tag, f"--file={folder / 'Dockerfile'}")


def _finish(root: Path) -> None:
    for path in (root / "dev").iterdir():
        path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)
    (root / "usr/bin/python").symlink_to("python3")
    for path in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        path.unlink()
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")  # buildah's chroot brings none
    # Where a network has a certificate of its own, pip must know it.
    shutil.copy(os.environ.get("SSL_CERT_FILE", f"/{CERTIFICATES}"), root / CERTIFICATES)
    major, minor = sys.version_info[:2]
    packages = root / f"usr/local/lib/python{major}.{minor}/dist-packages"
    given = [importlib.metadata.distribution(name) for name in sorted(_with_requirements("torch", "numpy"))]
    for distribution in given:
        _hand_over(distribution, packages)
    constraint = root / CONSTRAINT[1:]
    constraint.parent.mkdir(exist_ok=True)
    constraint.write_text("".join(f"{one.name}=={one.version}\n" for one in given), encoding="utf-8")


def _with_requirements(*texts: str) -> set[str]:
    """The names of these requirements' distributions, and of those that they require here."""
    names, waiting = set(), [Requirement(text) for text in texts]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        if (wanted.name, *wanted.extras) in seen:
            continue
        seen.add((wanted.name, *wanted.extras))
        distribution = importlib.metadata.distribution(wanted.name)
        names.add(distribution.name)
        for requirement in map(Requirement, distribution.requires or ()):
            extras = wanted.extras or {""}
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(requirement)
    return names


def _hand_over(distribution: importlib.metadata.Distribution, packages: Path) -> None:
    """Its files, as links where disks allow: they are read once, by the engine."""
    for file in distribution.files or ():
        source, target = Path(distribution.locate_file(file)), packages / file
        if ".." in file.parts or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)


def _run(command: list[str]) -> subprocess.CompletedProcess:
    isolation = {"BUILDAH_ISOLATION": "chroot"}  # works without an OCI runtime, in a container too
    return subprocess.run(command, capture_output=True, text=True, check=False, env=isolation | os.environ)
