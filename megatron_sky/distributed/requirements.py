"""The versions that this program was tested with, and which of the installed ones lie outside.

setup.py says the ranges; they are read from what it wrote into the installed package's description.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from platform import python_version

from megatron_sky.versions import installed

PACKAGE = "megatron-sky"
PYTHON = "Python"
_LEFT_OUT = {"dev", "gpu", "te-rehearsal"}
"""Extras: the tests' own tools; what this project has not run yet; and what never computes."""


@dataclass(frozen=True)
class Requirement:
    """A package's tested range, as `>=2.10,<2.16`, and the version that is installed (None: it is not)."""

    name: str
    tested: str
    installed: str | None
    is_older: bool = False  # than every tested one
    is_newer: bool = False

    @property
    def is_outside(self) -> bool:
        return self.is_older or self.is_newer

    def words(self) -> str:
        """What is the matter with a version outside of the range."""
        return f"{self.name} {self.installed} is {'older' if self.is_older else 'newer'} than tested ({self.tested})"

    def fix(self) -> str:
        """How to get a tested version."""
        return f"use {PYTHON} {self.tested}" if self.name == PYTHON else f'pip install "{self.name}{self.tested}"'


def requirements() -> list[Requirement]:
    """Python, and every package that the program needs or can use; none where the program itself is not installed."""
    try:
        own = distribution(PACKAGE)
    except PackageNotFoundError:
        return []
    ranges = {PYTHON: own.metadata["Requires-Python"] or ""} | dict(_ranges(own))
    return [
        compare(name, tested, python_version() if name == PYTHON else installed(name))
        for name, tested in ranges.items()
    ]


def compare(name: str, tested: str, version: str | None) -> Requirement:
    """Where `version` lies to the range `tested`. A build before a release, as NVIDIA's images have, counts as it."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    bounds = sorted(SpecifierSet(tested), key=str, reverse=True)  # the lower one first
    tested = ",".join(map(str, bounds))
    if version is None:
        return Requirement(name, tested, None)
    release = Version(Version(version).base_version)
    missed = [bound.operator[0] for bound in bounds if not bound.contains(release)]
    return Requirement(name, tested, version, is_older=">" in missed, is_newer="<" in missed)


def warn_of_untested(warn: Callable[[str], None]) -> None:
    """One warning that names every installed version outside of its range; nothing where there is none."""
    outside = [requirement for requirement in requirements() if requirement.is_outside]
    if outside:
        what = "; ".join(requirement.words() for requirement in outside)
        fixes = [f"  fix: {requirement.fix()}" for requirement in outside]
        warn("\n".join([f"{what}: calls may fail or mean something else", *fixes]))


def _ranges(own: Distribution) -> Iterator[tuple[str, str]]:
    from packaging.requirements import Requirement as Line

    extras = {"", *own.metadata.get_all("Provides-Extra", [])} - _LEFT_OUT
    for line in map(Line, own.requires or []):
        if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in extras):
            yield line.name, str(line.specifier)
