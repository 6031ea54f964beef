import pytest

from megatron_sky.corpus.plan import continue_plan, make_plan
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.errors import ConfigError


def recipe(folder, **more):
    sources = [{"name": "web", "kind": "jsonl", "paths": [str(folder)]}]
    return CorpusRecipe.model_validate({"out": "x", "sources": sources, "outputs": [{"name": "all"}]} | more)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name, size in (
        ("b.jsonl", 10),
        ("a.jsonl", 25),
        ("sub/c.jsonl.gz", 30),
        ("notes.txt", 5),
        (".hidden.jsonl", 5),
    ):
        (folder / name).write_bytes(b"x" * size)
    (folder / "same.jsonl").symlink_to(folder / "b.jsonl")
    return folder


def test_files_come_in_order_and_once_and_units_are_cut_by_size(files):
    plan = make_plan(recipe(files, read={"unit_bytes": 20}))
    pieces = [[(piece.path.rpartition("/")[2], piece.start, piece.end) for piece in unit.pieces] for unit in plan.units]
    assert pieces == [[("a.jsonl", 0, 20)], [("a.jsonl", 20, 25), ("b.jsonl", 0, 10)], [("c.jsonl.gz", 0, 30)]]


def test_sources_without_files_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match="names no files that end in"):
        make_plan(recipe(tmp_path / "none"))


def test_the_same_recipe_goes_on_with_its_units_and_another_is_refused(files, tmp_path):
    path = tmp_path / "out" / "plan.json"
    first = continue_plan(path, recipe(files, read={"unit_bytes": 20}))
    assert continue_plan(path, recipe(files, read={"unit_bytes": 999}, execution={"workers": 7})).units == first.units
    with pytest.raises(ConfigError, match=r"heuristics\.zh\.min_length = 7: was 100 when this corpus was begun"):
        continue_plan(path, recipe(files, heuristics={"zh": {"min_length": 7}}))


def test_changed_files_are_refused(files, tmp_path):
    path = tmp_path / "plan.json"
    continue_plan(path, recipe(files))
    (files / "a.jsonl").write_bytes(b"other")
    (files / "same.jsonl").unlink()
    (files / "b.jsonl").unlink()
    (files / "new.jsonl").write_bytes(b"1")
    with pytest.raises(ConfigError) as raised:
        continue_plan(path, recipe(files))
    assert all(word in str(raised.value) for word in ("has changed", "is gone", "was not there"))


def test_another_classifier_is_refused(files, tmp_path):
    (tmp_path / "q").write_bytes(b"first")
    judged = recipe(files, quality={"classifier": str(tmp_path / "q"), "min_score": {"zh": 0.5}})
    continue_plan(tmp_path / "plan.json", judged)
    (tmp_path / "q").write_bytes(b"second")
    with pytest.raises(ConfigError, match="q: has changed since this corpus was begun"):
        continue_plan(tmp_path / "plan.json", judged)


def test_chinese_lines_need_their_english_ones(tmp_path):
    for name in ("a.zh", "a.en", "b.zh.gz"):
        (tmp_path / name).write_bytes(b"x\n")
    pairs = {"name": "pairs", "kind": "parallel", "paths": [str(tmp_path)]}
    with pytest.raises(ConfigError, match=r"b\.en\.gz.*is not there"):
        make_plan(recipe(tmp_path, sources=[pairs]))
    (tmp_path / "b.en.gz").write_bytes(b"x")
    plan = make_plan(recipe(tmp_path, sources=[pairs]))
    assert [piece.path[-4:] for piece in plan.units[0].pieces] == ["a.zh", "h.gz"] and len(plan.files) == 4
