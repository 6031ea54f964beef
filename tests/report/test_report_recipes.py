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
    other = A.replace("{name: web, weight: 0.7}, {name: code, weight: 0.3}", "{name: code, weight: 0.4}")
    assert rows(a=A, b=other, c=A) == [
        ["data.train.web.weight", "0.7", "-", "0.7"],
        ["data.train.code.weight", "0.3", "0.4", "0.3"],
    ]


def test_a_recipe_that_is_missing_or_damaged_is_told_and_the_others_compared():
    notes = []
    found = rows(notes, a=A, b=None, c="a: [", d="[1]", e=A.replace("64", "32"))
    assert found == [["model.hidden_size", "64", "32"]]
    assert [note.split(":")[0] for note in notes] == ["b", "c", "d"]
    assert "has no config.yaml" in notes[0] and "is not YAML" in notes[1] and "holds no sections" in notes[2]
