"""The keys in which recipes differ."""

from megatron_sky.report.recipes import recipe_differences

A = """
model: {hidden_size: 64, tied: false}
data: {train: [{name: web, weight: 0.7}, {name: code, weight: 0.3}]}
schedule: {lr: 0.001}
marks: [1, 2]
note: null
"""


def rows(notes=None, **recipes):
    found = recipe_differences(recipes, [] if notes is None else notes)
    return found[0].rows if found else []


def test_equal_recipes_have_no_table():
    assert rows(a=A, b=A) == []


def test_keys_that_differ():
    other = A.replace("0.001", "0.0010000001").replace("[1, 2]", "[1]").replace("tied: false", "tied: true")
    assert rows(a=A, b=other) == [
        ["model.tied", "false", "true"],
        ["schedule.lr", "0.001", "0.0010000001"],
        ["marks", "[1, 2]", "[1]"],
    ]


def test_entries_with_names_are_told_apart_by_them():
    other = A.replace("{name: code, weight: 0.3}", "{name: code, weight: 0.4}")
    assert rows(a=A, b=other, c=A) == [["data.train.code.weight", "0.3", "0.4", "0.3"]]


def test_what_some_runs_lack_is_one_row():
    other = A.replace("{name: web, weight: 0.7}, ", "")
    assert rows(a=A, b=other, c=A) == [["data.train.web", "given", "-", "given"]]
    assert rows(a="s: [{name: x, n: 1}]", b="s: []", c="{t: 1}") == [["s", "given", "-", "-"], ["t", "-", "-", "1"]]


def test_what_some_runs_lack_and_others_have_otherwise():
    assert rows(a="s: [{name: x, n: 1}]", b="s: []", c="s: [{name: x, n: 2}]") == [["s.x.n", "1", "-", "2"]]
    assert rows(a="s: {n: 1}", b="s: 3") == [["s", '{"n": 1}', "3"]]


def test_odd_recipes_are_compared_or_told():
    assert rows(a="x: [{2020-01-01: 1}]", b="x: .nan") == [["x", '[{"2020-01-01": 1}]', "NaN"]]
    notes = []
    assert rows(notes, a="x: &x [*x]", b="x: 1", c="x: 2") == [["x", "1", "2"]] and "a: config.yaml is" in notes[0]


def test_a_recipe_that_is_missing_or_damaged_is_told_and_the_others_compared():
    notes = []
    found = rows(notes, a=A, b=None, c="a: [", d="[1]", e=A.replace("64", "32"))
    assert found == [["model.hidden_size", "64", "32"]]
    assert [note.split(":")[0] for note in notes] == ["b", "c", "d"]
    assert "has no config.yaml" in notes[0] and "is not YAML" in notes[1] and "holds no sections" in notes[2]
