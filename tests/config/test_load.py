"""Recipes in, configs out: layers, overrides, units, and every problem told at once with its fix."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.config import Config, dump_config, load_config, strict_yaml
from megatron_sky.config.load import load_recipe
from megatron_sky.control import find_control
from megatron_sky.errors import ConfigError
from tests.config.recipes import BASE, problems

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_layers_merge_left_to_right_then_overrides(write):
    first = write(BASE, "a.yaml")
    second = write({"schedule": {"lr": 2e-3, "min_lr": 1e-4}, "train": {"seed": 7}}, "b.yaml")
    config = load_config([first, second], ["train.seed=8", "model.num_layers=6", "checkpoint.interval=5 steps"])
    assert (config.schedule.lr, config.schedule.min_lr, config.train.seed) == (2e-3, 1e-4, 8)
    assert (config.model.num_layers, config.model.hidden_size) == (6, 64)
    assert config.checkpoint.interval.every == 5


def test_scientific_notation_is_a_float(write):
    text = (
        "model: {preset: tiny}\n"
        "schedule: {lr: 6e-4, min_lr: 6E-5}\n"
        "train: {run_dir: r, tokens: 2e3, global_batch_size: 8}\n"
    )
    config = load_config([write(text)], ["optimizer.adam_eps=1e-9"])
    assert (config.schedule.lr, config.schedule.min_lr, config.optimizer.adam_eps) == (6e-4, 6e-5, 1e-9)
    assert config.train.tokens == 2000


@pytest.mark.parametrize("recipe", sorted(str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("*.yaml")))
def test_every_example_is_valid_and_its_resolved_form_loads_back_equal(recipe, tmp_path):
    folder = (EXAMPLES / recipe).parent
    layers = sorted(folder.glob("gpu_*.yaml"))  # each goes over a model and a stage
    models = [p for p in sorted(set(folder.glob("*.yaml")) - set(layers)) if "model:" in p.read_text().splitlines()]
    stages = [p for p in sorted(set(folder.glob("*.yaml")) - set(layers)) if p not in models]
    over = [EXAMPLES / recipe] if EXAMPLES / recipe in layers else []
    for model in models:
        for stage in stages:
            config = load_config([model, stage, *over])
            again = tmp_path / "again.yaml"
            again.write_text(dump_config(config), encoding="utf-8")
            assert load_config([again]) == config


ODD = ["3e-4", ".5", "1_000", "0x1F", "1:30", "yes", "null", "~", "2024-01-01", "<<", "=", "a: b", "- x", "# x", ""]


ANY = st.one_of(
    st.sampled_from([*ODD, "\x85", "\u2028", "\ufeff", "\r\n", "x" * 200]),
    st.from_regex(r"[-+.0-9eE_:]{1,8}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(ANY, min_size=3, max_size=3), st.sampled_from(["", "${HOME}", "$${HOME}", "${A:-b}", "~/"]))
def test_any_string_loads_back_equal(tmp_path_factory, strings, variable):
    assert strict_yaml.load(strict_yaml.dump({"all": strings})) == {"all": strings}
    if any(find_control(text) or "${" in text for text in strings):
        return
    path, run, tokenizer = variable + strings[0], strings[1], variable + strings[2]
    given = BASE | {
        "data": {"train": [{"name": "3e-4", "path": path}]},
        "tokenizer": {"path": tokenizer},
        "monitor": {"wandb": {"project": run}},
    }
    config = Config.model_validate(given)
    file = tmp_path_factory.getbasetemp() / "odd.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config([file]) == config


def test_merge_keys_bring_in_and_own_values_win(write):
    text = yaml.safe_dump(BASE) + (
        "data:\n  train:\n"
        "  - &a {name: a, path: x, weight: 2}\n"
        "  - &b {<<: *a, name: b}\n"
        "  - &c {path: z, <<: *b, name: c, weight: 5e-4}\n"
        "  - {<<: [{weight: 7}, *c], name: d}\n"
        "  - {name: e, <<: {path: y, <<: *a}}\n"
    )
    sources = load_config([write(text)]).data.train
    told = [(source.name, source.path, source.weight) for source in sources]
    assert told == [("a", "x", 2), ("b", "x", 2), ("c", "z", 5e-4), ("d", "z", 7), ("e", "y", 2)]


def test_a_file_is_a_file_whatever_its_name(write, tmp_path):
    folder = tmp_path / "lr=3e-4"
    folder.mkdir()
    file = write(BASE, "lr=3e-4/config.yaml")
    assert load_recipe([str(file), "train.seed=5"]).train.seed == 5
    assert load_recipe([str(write(BASE, "recipe.txt")), "train.run_dir=x.yaml"]).train.run_dir == "x.yaml"
    with pytest.raises(ConfigError, match=r"lr=3e-4/confg\.yaml: no such recipe file\n.*did you mean .*config\.yaml"):
        load_recipe([str(folder / "confg.yaml")])


def test_all_problems_at_once_with_nearest_names_and_places(write):
    path = write({**BASE, "modle": {}, "optimizer": {"weight_dekay": 0.1}})
    told = problems([path], ["model.num_layers=abc", "train.lr=3", "schedule.style=cosin", "train.tokens=1.5Q"])
    text = "\n".join(told)
    assert len(told) == 6
    for part in (
        "did you mean model?",
        "did you mean optimizer.weight_decay?",
        "did you mean schedule.lr?",
        "model.num_layers (command line) = 'abc'",
        "schedule.style (command line) = 'cosin'",
        "train.tokens (command line) = '1.5Q'",
        f"{path}:",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [", "is not valid YAML"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("model: {preset: tiny}\nmodel: {preset: tiny}\n", "is given twice"),
        ("model: {preset: huge}\n", "must be one of skywork_13b"),
        ("train: {run_dir: '${NOT_SET_ANYWHERE}/x'}\n", "NOT_SET_ANYWHERE, which is not set"),
        ("model: {preset: tiny, <<: {num_layers: 3}, num_layers: 2, num_layers: 3}\n", "is given twice"),
        ("model: {<<: tiny}\n", "<< wants a mapping"),
        ("model: &a {<<: *a}\n", "holds itself"),
        ("data: {train: [{name: a, path: x}, {name: a, path: y}]}\n", "source names must be unique"),
    ],
)
def test_bad_files_are_told(write, text, part):
    base = write(BASE, "base.yaml")
    assert any(part in each for each in problems([base, write(text, "bad.yaml")]))


def test_a_missing_file_names_its_neighbour(write):
    path = write(BASE, "model.yaml")
    assert any(f"did you mean {path}?" in each for each in problems([path.with_name("modle.yaml")]))


@pytest.mark.parametrize("override", ["nonsense", "=3", "model..x=3"])
def test_an_override_that_is_none(write, override):
    assert any(override in each for each in problems([write(BASE)], [override]))


def test_environment_variables(write, monkeypatch):
    monkeypatch.setenv("CORPUS", "/data")
    paths = ["${CORPUS}/a.bin", "${ELSEWHERE:-here}/b", "$${CORPUS}/c"]
    sources = [{"name": f"source{number}", "path": path} for number, path in enumerate(paths)]
    config = load_config([write({**BASE, "data": {"train": sources}})])
    assert [source.path for source in config.data.train] == ["/data/a", "here/b", "${CORPUS}/c"]


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("a", "a"),
        ("a.bin", "a"),
        ("a.idx", "a"),
        ("a.bin.gz", "a.bin.gz"),
        ("a.bin/b", "a.bin/b"),
    ],
)
def test_a_pair_may_be_named_by_one_of_its_files(write, given, prefix):
    layer = {"data": {"train": [{"name": "a", "path": given}]}, "validation": {"sets": [{"name": "b", "path": given}]}}
    config = load_config([write({**BASE, **layer})])
    assert config.data.train[0].path == config.validation.sets[0].path == prefix
    assert load_config([write(dump_config(config))]) == config


@pytest.mark.parametrize("path", ["a.bin.bin", "a.idx.bin", "a.bin.idx"])
def test_a_pair_whose_prefix_ends_as_a_file_does_is_refused(write, path):
    layer = {"data": {"train": [{"name": "a", "path": path}]}, "validation": {"sets": [{"name": "b", "path": path}]}}
    told = problems([write({**BASE, **layer})])
    assert len(told) == 2 and all(f"{path[:-4]!r} ends as a file of a pair does" in each for each in told)


def test_a_list_item_can_be_overridden(write):
    path = write({**BASE, "data": {"train": [{"name": "a", "path": "x"}]}})
    assert load_config([path], ["data.train.0.weight=0.5"]).data.train[0].weight == 0.5
    assert any("index below 1" in each for each in problems([path], ["data.train.3=x"]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model:\n\tpreset: tiny\n", "is not valid YAML"),
        ("- a\n", "must be a mapping of sections"),
        (None, "no such recipe file"),
        ("", "is a folder"),
    ],
)
def test_a_file_that_can_not_be_read_is_the_only_problem(text, told, write, tmp_path):
    path = tmp_path / "r.yaml"
    if text:
        write(text, "r.yaml")
    elif text == "":
        path.mkdir()
    (problem,) = problems([path])
    assert told in problem and str(path) in problem and "<unicode string>" not in problem


def test_a_missing_section_says_what_it_is_for(write):
    told = "\n".join(problems([write({"model": {"preset": "tiny"}})]))
    assert "schedule: is required" in told and "None" not in told and told.count("add it: ") == 2
    told = "\n".join(problems([write(BASE)], ["train=3"]))
    assert "train (command line) = 3: is a section" in told and "train.NAME=VALUE" in told


@pytest.mark.parametrize("override", ["data.train.zh.wieght=3", "data.train.0.wieght=3"])
def test_a_typo_in_a_lists_item(override, write):
    recipe = write(BASE | {"data": {"train": [{"name": "zh", "path": "x"}]}})
    (problem,) = problems([recipe], [override])
    assert "data.train.0.wieght (command line)" in problem and "did you mean data.train.0.weight?" in problem
    told = problems([write(BASE | {"sessions": [{"name": "a", "tokens": "1M", "schedule": {"lrr": 1}}]})])
    assert "did you mean sessions.0.schedule.lr?" in "\n".join(told)


@pytest.mark.parametrize("text", ["1000steps", "1h", "-10 steps", "10 parsecs", "a b c"])
def test_a_bad_interval_names_its_units(text, write):
    (problem,) = problems([write(BASE)], [f"checkpoint.interval={text}"])
    assert '"100 steps" or "5B tokens"' in problem


def test_the_home_folder_in_paths(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides = [
        "train.run_dir=~/run",
        "tokenizer.path=~/t.model",
        "checkpoint.init_from=~/other",
        "data.train.0.path=~/d",
    ]
    config = load_config([write(BASE | {"data": {"train": [{"name": "n", "path": "x"}]}})], overrides)
    paths = [config.train.run_dir, config.tokenizer.path, config.checkpoint.init_from, config.data.train[0].path]
    assert paths == [f"/home/me/{name}" for name in ("run", "t.model", "other", "d")]


@pytest.mark.parametrize("value", ["yes", "on", "0x10", "1:30", "true", "False", "2024-01-01", "'${LR}'"])
def test_a_number_is_decimal_or_refused(write, value):
    for override in (f"schedule.lr={value}", f"train.global_batch_size={value}"):
        assert any(override.partition("=")[0] in each for each in problems([write(BASE)], [override]))


def test_leading_zeros_do_not_make_a_number_octal(write):
    assert load_config([write(BASE)], ["train.global_batch_size=0100"]).train.global_batch_size == 100


def test_variables_stand_in_paths_alone_and_are_stored_as_written(write, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WHERE", "/runs")
    config = load_config([write(BASE)], ["train.run_dir=${WHERE}/a"])
    assert config.train.run_dir == "/runs/a"
    text = dump_config(config)
    assert "run_dir: ${WHERE}/a" in text and "/runs" not in text + str(config.model_dump(mode="json"))
    assert load_config([write(text)]) == config
    told = problems([write(BASE)], ["monitor.wandb.project=${HF_TOKEN}"])
    assert any("variables of the environment stand in paths alone" in each for each in told)
    assert not any("hf_secret" in each for each in told)
    monkeypatch.delenv("WHERE")
    assert any("WHERE, which is not set" in each for each in problems([write(text)]))
    assert load_config([write(text)], keep_unset=True).train.run_dir == "${WHERE}/a"


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x00", "\x85", "\u2028", "\u202e"])
def test_a_control_character_is_refused(write, character, monkeypatch):
    for key in ("train.run_dir", "tokenizer.path", "monitor.wandb.project"):
        told = problems([write(BASE)], [f"{key}={strict_yaml.dump('a' + character + 'b')}"])
        assert any(f"holds the control character {character!a}" in each for each in told)
    if character != "\x00":
        monkeypatch.setenv("WHERE", f"a{character}b")
        assert any("control character" in each for each in problems([write(BASE)], ["train.run_dir=${WHERE}"]))
