"""The names of Megatron-LM's arguments: `recorded/arguments.txt` has a name a line, with the versions that know it."""

import argparse

from tests.megatron_lm.cases import RECORDED

LIST = RECORDED / "arguments.txt"


def record(version: str) -> None:
    """Notes every name that the parser of the copy loaded in this process knows, those of `--no-x` too."""
    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_megatron_arguments(parser)
    words = {word[2:] for action in parser._actions for word in action.option_strings if word.startswith("--")}
    versions = {name: set(known) - {version} for name, known in read().items()} if LIST.exists() else {}
    for name in words - {"help"}:
        versions.setdefault(name, set()).add(version)
    lines = [f"{name} {' '.join(sorted(versions[name]))}\n" for name in sorted(versions) if versions[name]]
    LIST.write_text("".join(lines), encoding="utf-8")


def read() -> dict[str, list[str]]:
    """Name -> the versions that know it."""
    lines = [line.split() for line in LIST.read_text(encoding="utf-8").splitlines()]
    return {name: versions for name, *versions in lines}
