"""Every recipe in examples/ is rehearsed: its branches for GPUs run without one. CUDA graphs alone are not."""

from pathlib import Path

import pytest

from megatron_sky.config import Config
from megatron_sky.config.load import load_recipe
from megatron_sky.errors import ConfigError
from megatron_sky.planner.rehearsal import Request, process, rehearse_all, stage_ranks
from megatron_sky.versions import installed

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
WITH_TE = {
    (*SKYWORK, "skywork_13b/gpu_blackwell_mxfp8"): 512,
    (*SKYWORK, "skywork_13b/gpu_hopper_fp8"): 512,
    (*SKYWORK, "skywork_13b/gpu_tensor_parallel"): 512,
}
GRAPHS = (*SKYWORK, "skywork_13b/gpu_graphs")
NO_RECIPES = ("tasks/", "leakage/", "corpus_in_miniature/", "skypile/", "chat/")


def example(names: tuple[str, ...], *overrides: str) -> Config:
    return load_recipe([*(str(EXAMPLES / f"{name}.yaml") for name in names), *overrides])


def test_every_recipe_is_here():
    files = {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.yaml")}
    named = {name for names in (*SMALL, *LARGE, *WITH_TE, GRAPHS) for name in names}
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
        assert sum(wait.calls for wait in result.waits) == 1, "the gradients' norm and the loss"


def test_small_recipes_run():
    rehearse_examples(SMALL)


@pytest.mark.slow
def test_large_recipes_run():
    rehearse_examples(LARGE)


@pytest.mark.te
@pytest.mark.slow
@pytest.mark.skipif(any(installed(name) is None for name in process._TE_PACKAGES), reason="needs te-rehearsal")
def test_recipes_for_transformer_engine_run():
    rehearse_examples(WITH_TE)


def test_recorded_graphs_are_refused():
    with pytest.raises(ConfigError, match=r"kernels\.cuda_graphs = True: can't be rehearsed"):
        process.choose_backend(example(GRAPHS))
