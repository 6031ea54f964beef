"""What users meet: the wording of problems, and exit codes that scripts can tell apart."""

import pytest

from megatron_sky import errors
from megatron_sky.errors import ConfigError, MissingDependency, Problem, RankFailed, SkyError, told_once


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.b", "must be even"), "a.b: must be even"),
        (Problem("a.b", "must be even", value=3), "a.b = 3: must be even"),
        (Problem("a.b", "must be even", value="x"), "a.b = 'x': must be even"),
        (Problem("a.b", "must be even", value=0), "a.b = 0: must be even"),
        (Problem("a.b", "must be even", "give 2", 3), "a.b = 3: must be even\n      fix: give 2"),
    ],
)
def test_a_problem_in_words(problem, text):
    assert str(problem) == text


def test_the_later_of_two_that_say_the_same_is_left_out():
    first, other = Problem("a", "is wrong", "fix it", 1), Problem("b", "is wrong")
    assert told_once([first, other, Problem("a", "is wrong", "another way", 2)]) == [first, other]
    assert told_once([]) == []


def test_all_problems_are_told_with_their_number():
    text = str(ConfigError([Problem("a", "is wrong"), Problem("b", "is worse")]))
    assert text == "the recipe has 2 problems:\n  1. a: is wrong\n  2. b: is worse"
    assert str(ConfigError(Problem("a", "is wrong"))).startswith("the recipe has a problem:\n")


def test_options_are_the_command_lines():
    assert str(ConfigError(Problem("--ranks", "is wrong"))).startswith("the command line has a problem")
    assert str(ConfigError([Problem("--ranks", "is"), Problem("a.b", "is")])).startswith("the recipe has 2 problems")
    with pytest.raises(AssertionError, match="needs a problem"):
        ConfigError([])


def test_exit_codes():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SkyError)]
    codes = [kind.exit_code for kind in kinds if kind not in (SkyError, RankFailed)]
    assert len(set(codes)) == len(codes), "scripts tell kinds of errors apart by them"
    assert all(0 < kind.exit_code < 126 for kind in kinds)


@pytest.mark.parametrize(("given", "code"), [(3, 3), (0, 1), (-9, -9)])
def test_a_rank_that_failed_is_never_a_success(given, code):
    assert RankFailed("rank 1 failed", given).exit_code == code


def test_what_is_missing_says_what_for_and_how_it_comes():
    text = str(MissingDependency("pyarrow", "reading a.parquet", "pip install pyarrow"))
    assert "reading a.parquet needs the package `pyarrow`" in text and text.endswith("\n  fix: pip install pyarrow")
