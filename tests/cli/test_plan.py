"""`megatron-sky plan` as a user types it."""

import re

import pytest
import yaml
from typer.testing import CliRunner

from megatron_sky.cli.main import app
from megatron_sky.errors import ConfigError
from tests.planner.conftest import recipe_file, skywork_file
from tests.planner.machine import entry

__all__ = ["recipe_file", "skywork_file"]


@pytest.fixture
def plan():
    """`plan(arguments...)`: what it prints; what it raises is raised."""
    return lambda *arguments: CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False).stdout


def test_explained_layout(plan, skywork_file):
    shown = plan(skywork_file, "--gpus", 512, "--gpu", "a800", "--explain", "PP2 x DP256")
    assert "DP256 x PP2 MB1 zero1 on 512 a800" in shown
    assert re.search(r"MFU \d\d\.\d %", shown) and "pipeline bubble" in shown and "GPU-hours" in shown


def test_a_search_writes_layout_and_picture(plan, recipe_file, tmp_path):
    out, picture = tmp_path / "layout.yaml", tmp_path / "frontier.png"
    shown = plan(recipe_file, "--gpus", 16, "--gpu", "h100", "--top", 3, "--out", out, "--picture", picture)
    assert re.search(r"^   3 +[\d,]+ ", shown, re.M) and not re.search(r"^   4 ", shown, re.M)
    assert "fit and are slower" in shown and picture.read_bytes().startswith(b"\x89PNG")
    again = plan(recipe_file, out, "--gpus", 16, "--gpu", "h100", "--explain", "own")
    assert again.splitlines()[0].split("layout")[1].strip() in shown + out.read_text(encoding="utf-8")


def test_other_threads_than_were_measured_are_told(plan, recipe_file, tmp_path, caplog):
    measured = tmp_path / "two_cores.yaml"
    measured.write_text(yaml.safe_dump(entry()))
    for threads, told in ((0, False), (2, False), (1, True)):
        caplog.clear()
        plan(recipe_file, f"train.num_threads={threads}", "--gpus", "1", "--gpu", measured, "--explain", "own")
        assert ("measured with 2 threads a process" in caplog.text) == told, threads


def test_the_pipeline_is_drawn(plan, recipe_file, tmp_path):
    picture = tmp_path / "pipeline.svg"
    plan(recipe_file, "--gpus", 16, "--gpu", "h100", "--explain", "pp4", "--picture", picture)
    assert "stage 3" in picture.read_text(encoding="utf-8")


def test_what_does_not_fit_is_told_with_fixes(plan, skywork_file):
    with pytest.raises(ConfigError, match=r"needs \d+\.\d GiB .* most of it is gradients") as error:
        plan(skywork_file, "--gpus", 512, "--gpu", "a800", "--explain", "dp512")
    assert str(error.value).count("tokens/s a GPU") == 3


def test_scaling(plan, recipe_file):
    shown = plan(recipe_file, "--gpu", "a800", "--scale", "8,64")
    assert "strong scaling" in shown and "weak scaling" in shown
    assert len(re.findall(r"^ +8 +512 .*100\.0%", shown, re.M)) == 2


def test_goodput(plan, skywork_file):
    arguments = (skywork_file, "--gpus", 512, "--gpu", "a800", "--goodput", "--explain", "pp2", "--checkpoint-stall", 5)
    shown = plan(*arguments)
    assert "64 nodes, each 6,335 hours apart" in shown and shown.count("worth having") == 1
    worse = plan(*arguments, "--node-mtbf-hours", 100)

    def share(text):
        return float(re.search(r"goodput +([\d.]+)%", text)[1])

    assert share(worse) < share(shown) < 100
    assert int(re.search(r"checkpoint.interval: (\d+) steps", shown)[1]) > 10


def test_too_few_spares_are_no_rows(plan, skywork_file):
    arguments = (skywork_file, "--gpus", 512, "--gpu", "a800", "--goodput", "--explain", "pp2", "--node-mtbf-hours", 16)
    shown = plan(*arguments)
    assert re.search(r"with at least \d+ spare nodes 5% of the time trains", shown) and "would help further" in shown
    assert min(float(share) for share in re.findall(r"^ +\d+ +([\d.]+)% +[\d.]+%", shown, re.M)) >= 5


def test_check(plan):
    shown = plan("--check")
    assert "sky-skywork-dp256-pp2" in shown and re.search(r"^all +339", shown, re.M)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", 512], "--gpu: is needed"),
        (["--gpus", 512, "--gpu", "a900", "--explain", "pp2"], "did you mean a800"),
        (["--gpus", 512, "--gpu", "a800", "--explain", "pp2 x up"], "'up' is no part of a layout"),
        (["--gpus", 512, "--gpu", "a800", "--explain", "pp2 dp512"], "makes 1024 ranks, not 512"),
        (["--gpus", 512, "--gpu", "a800", "--explain", "pp3"], "must divide the number of ranks"),
        (["--gpus", 8, "--gpu", "a800", "--picture", "x.gif"], "a picture is a .png or .svg file"),
        (["--gpu", "a800", "--scale", "512,x"], "must be numbers of GPUs"),
        (["--gpu", "a800", "--scale", "500"], "--scale: no layout of 500 GPUs divides the global batch"),
        (["--gpu", "a800", "--scale", "8", "--gpus", 16], "--gpus: has an effect with the search, --explain and"),
        (["--gpus", 8, "--gpu", "a800", "--explain", " "], "--explain = ' ': names no layout"),
        (["--gpus", 8, "--gpu", "a800", "--out", "/"], "--out = '/': is a folder"),
        (["--gpus", 8, "--gpu", "a800", "--picture", "/dev/null/x.png"], "--picture = .* can't be written"),
        (["--calibrate"], "RECIPE: has an effect with the search, --explain, --scale and --goodput only"),
        (["--gpu", "a800", "--scale", "8", "--goodput"], "can't go with --scale"),
        (
            ["--gpu", "a800", "--scale", "8", "--out", "x.yaml"],
            "search, --explain and --calibrate only",
        ),
        (["--gpus", 8, "--gpu", "a800", "--repair-hours", "3"], "--repair-hours: has an effect with --goodput only"),
        (["--gpus", 8, "--gpu", "a800", "--explain", "own", "--top", "3"], "--top: has an effect with the search only"),
        (
            ["--gpus", 8, "--gpu", "a800", "--goodput", "--node-mtbf-hours", "1", "--restart-minutes", "9e9"],
            "would train",
        ),
        (["--gpus", 384, "--gpu", "a800", "--explain", "dp384"], "must be a multiple of train.micro_batch_size"),
    ],
)
def test_mistakes_are_told(plan, recipe_file, arguments, said):
    with pytest.raises(ConfigError, match=said):
        plan(recipe_file, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "--rows", "/nope.csv"], "--rows = '/nope.csv': is no file"),
        (["--check", "--gpus", 8], "--gpus: has an effect with"),
        (["--calibrate", "--check"], "--calibrate: can't go with --check"),
        (["--calibrate", "--output", "/"], "--out = '/': is a folder"),
        (["--calibrate", "--gpu", "a800"], "--gpu: has an effect with"),
    ],
)
def test_mistakes_without_a_recipe_are_told(plan, arguments, said):
    with pytest.raises(ConfigError, match=said):
        plan(*arguments)
