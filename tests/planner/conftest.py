"""Recipes for the planner's tests."""

import pytest

from megatron_sky.config.load import load_config
from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.job import Job

RECIPE = """
model: {vocab_size: 8192, hidden_size: 1024, ffn_hidden_size: 2816, num_layers: 8, num_attention_heads: 8}
precision: {dtype: bf16}
train: {global_batch_size: 512, micro_batch_size: 1, run_dir: runs/plan, tokens: 1B}
schedule: {style: constant, lr: 3e-4}
data: {train: [{name: text, path: data/text}]}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def skywork_file(tmp_path):
    """The report's model and batch."""
    path = tmp_path / "skywork.yaml"
    text = RECIPE.replace(RECIPE.splitlines()[1], "model: {preset: skywork_13b}").replace("512, micro", "4096, micro")
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def make_config(recipe_file):
    """`make_config("parallel.pp_size=2", ...)`: a small model's recipe."""
    return lambda *overrides: load_config([recipe_file], overrides)


@pytest.fixture
def make_job(make_config):
    """`make_job("parallel.pp_size=2", ..., gpus=16)`: it as a job on A800s."""
    return lambda *overrides, gpus=16, gpu="a800": Job.of(make_config(*overrides), cluster_of(find_gpu(gpu)), gpus)
