"""Every recipe in examples/ that the torch backend can train is rehearsed: its branches for GPUs run without one."""

from pathlib import Path

import pytest

from megatron_sky.config import Config
from megatron_sky.config.load import load_recipe
from megatron_sky.errors import ConfigError
from megatron_sky.planner.rehearsal import Request, process, rehearse_all, stage_ranks

EXAMPLES = Path(__file__).parents[3] / "examples"
SKYWORK = ("skywork_13b/model", "skywork_13b/sessions")
SMALL = {
    ("quickstart/model", "quickstart/train"): 2,
    ("paper_in_miniature/model", "paper_in_miniature/sessions"): 1,
    ("paper_in_miniature/model", "paper_in_miniature/burst"): 1,
}
LARGE = {
    SKYWORK: 512,
    (*SKYWORK, "skywork_13b/gpu_hopper_fp8_torch"): 512,
    (*SKYWORK, "skywork_13b/gpu_reproducible"): 512,
    ("llama2_13b/model", "llama2_13b/speed"): 512,
    ("appendix_a/llama_7b", "appendix_a/train"): 64,
    ("appendix_a/gpt_7b", "appendix_a/train"): 64,
}
NEED_TE = [
    (*SKYWORK, f"skywork_13b/gpu_{name}") for name in ("blackwell_mxfp8", "graphs", "hopper_fp8", "tensor_parallel")
]
NO_RECIPES = ("tasks/", "leakage/")


def example(names: tuple[str, ...], *overrides: str) -> Config:
    return load_recipe([*(str(EXAMPLES / f"{name}.yaml") for name in names), *overrides])


def test_every_recipe_is_here():
    files = {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.yaml")}
    named = {name for names in (*SMALL, *LARGE, *NEED_TE) for name in names}
    assert {name for name in files if not name.startswith(NO_RECIPES)} == named


def rehearse_examples(examples: dict[tuple[str, ...], int]) -> None:
    requests = [
        Request(config, world_size, rank)
        for names, world_size in examples.items()
        for config in [example(names)]
        for rank in stage_ranks(config, world_size)
    ]
    for request, result in zip(requests, rehearse_all(requests), strict=True):
        assert result.peak_bytes > sum(result.state.values()), request.config.train.run_dir
        assert result.peak_phase == "forward and backward"


def test_small_recipes_run():
    rehearse_examples(SMALL)


@pytest.mark.slow
def test_large_recipes_run():
    rehearse_examples(LARGE)


@pytest.mark.parametrize("names", NEED_TE, ids=lambda names: names[-1])
def test_recipes_for_transformer_engine_are_refused(names):
    with pytest.raises(ConfigError, match="the te backend is not rehearsed"):
        process.check_backend(example(names))
