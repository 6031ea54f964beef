"""YAML of plain values within limits."""

import pytest

from tests.config.recipes import problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {tokens: !!int abc}\n", "'abc' is tagged as int"),
        ("train: {run_dir: !!timestamp 2024-13-45}\n", "only plain values are read"),
        ("train: !!python/object/apply:os.system [id]\n", "only plain values are read"),
        ("train: !!set {a}\n", "only plain values are read"),
        ("train: {? {a: b} : c}\n", "can't be a key"),
        ("train: " + "[" * 101 + "]" * 101 + "\n", "more than 100 levels"),
        ("train: " + "[" * 100_000 + "\n", "nested too deeply"),
        ('train: "\\UFFFFFFFF"\n', "is not valid YAML"),
        ("train: {tokens: " + "9" * 5000 + "}\n", "is not valid YAML"),
    ],
    ids=lambda value: value[:30],
)
def test_a_recipe_is_plain_values_within_limits(write, text, message):
    assert any(message in each for each in problems([write(text)]))


def test_aliases_of_aliases_are_counted_before_they_are_gone_through(write):
    lines = ["l0: &l0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert any("stands for more than 500,000 values" in each for each in problems([write("\n".join(lines))]))


def test_a_recipe_without_end_is_refused():
    assert any("is no regular file" in each for each in problems(["/dev/zero"]))
