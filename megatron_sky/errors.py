"""The errors that users meet.

Everything a user can fix is a `SkyError`: `cli.main` prints its text and exits with its `exit_code`. What only a
programmer can fix is an `assert`, and keeps its traceback. A message names the field or file, the value, the rule
and the fix; where several things are wrong at once, `ConfigError` carries all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass


class SkyError(Exception):
    """Something the user can fix. `exit_code` is the process's exit status."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One broken rule: where (dotted key or file), what stands there, the rule, and how to fix it."""

    where: str
    rule: str
    fix: str = ""
    value: object = None

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {self.value!r}"
        fix = f"\n      fix: {self.fix}" if self.fix else ""
        return f"{self.where}{shown}: {self.rule}{fix}"


def told_once(problems: Iterable[Problem]) -> list[Problem]:
    """Without the later of two that break the same rule at the same place."""
    first: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        first.setdefault((problem.where, problem.rule), problem)
    return list(first.values())


class ConfigError(SkyError):
    """A recipe, or the file of settings that `of` names, can't be used; `problems` holds every broken rule found."""

    exit_code = 2

    def __init__(self, problems: list[Problem] | Problem, of: str | None = None):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        assert self.problems, "a ConfigError needs a problem"
        count = len(self.problems)
        asked = all(problem.where.startswith("-") for problem in self.problems)
        what = of or ("the command line" if asked else "the recipe")
        head = f"{what} has a problem" if count == 1 else f"{what} has {count} problems"
        super().__init__(head + ":\n" + "\n".join(f"  {i}. {p}" for i, p in enumerate(self.problems, 1)))


class DataError(SkyError):
    """A data or tokenizer file that is missing, damaged, or contradicts its description."""

    exit_code = 3


class CheckpointError(SkyError):
    """A checkpoint that is missing, damaged, or belongs to another model."""

    exit_code = 4


class RunError(SkyError):
    """The run folder or the run's numbers do not allow the run (in use, not writable, no space, not finite)."""

    exit_code = 5


class OutputLost(SkyError):
    """Standard output takes nothing: its disk is full, or who read it has gone."""

    exit_code = 74  # EX_IOERR


class NodeError(SkyError):
    """A node, a GPU or the way between nodes fails the job at its start: another start may find all of them well."""

    exit_code = 69  # EX_UNAVAILABLE


class LeftEarly(SkyError):
    """The run was asked to leave (a signal, the job's end), saved, and is to be started again: no failure."""

    exit_code = 75  # EX_TEMPFAIL: try again


class MissingDependency(SkyError):
    """An optional package is needed and absent."""

    exit_code = 6

    def __init__(self, package: str, needed_for: str, install: str):
        super().__init__(f"{needed_for} needs the package `{package}`, which is not installed.\n  fix: {install}")


class RankFailed(SkyError):
    """One process of a distributed job failed; the message holds its rank and cause."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code or 1
