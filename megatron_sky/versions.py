"""Versions of installed packages, and what of them is compared."""

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def release(version: str | None) -> tuple[int, ...]:
    """`"2.13.0+cu129"` -> (2, 13, 0), to be compared; () for None, and for what is no version."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version.removesuffix("+")).release if version else ()  # Python built from a checkout: 3.13.0+
    except InvalidVersion:
        return ()
