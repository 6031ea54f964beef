"""What is refused before the start: by the recipe alone, by the backend, and by the machine."""

import dataclasses
from pathlib import Path

import pytest

from megatron_sky.config import load_config
from megatron_sky.config.validate import backend_problems, find_problems
from megatron_sky.distributed.machine import Machine
from megatron_sky.model.backends.support import machine_problems

H100 = Machine("NVIDIA H100 80GB HBM3", (9, 0), "2.13.0+cu130", "13.0", "2.20.2", 13, apex=False)
A800 = Machine("NVIDIA A800-SXM4-80GB", (8, 0), "2.8.0+cu126", "12.6", "2.2.0", 12, apex=True)
B200 = Machine("NVIDIA B200", (10, 0), "2.13.0+cu130", "13.0", "2.20.2", 13, apex=True)
RTX5090 = Machine("NVIDIA GeForce RTX 5090", (12, 0), "2.13.0+cu130", "13.0", "2.20.2", 13, apex=False)
CPU = Machine(None, None, "2.13.0+cpu", None, None, None, apex=False)


def words(machine: Machine, config, backend: str = "te") -> str:
    problems = machine_problems(machine, backend, precision=config.precision, kernels=config.kernels)
    return "\n".join(map(str, problems))


def fp8(recipe: str) -> str:
    return f"precision.fp8={{recipe: {recipe}}}"


@pytest.mark.parametrize(
    ("machine", "fp8_recipe", "told"),
    [
        (H100, "delayed", ""),
        (H100, "tensorwise", ""),
        (H100, "blockwise", ""),
        (H100, "mxfp8", "needs a Blackwell GPU (compute capability 10.x); this is NVIDIA H100 80GB HBM3"),
        (B200, "mxfp8", ""),
        (RTX5090, "mxfp8", "needs a Blackwell GPU (compute capability 10.x); this is NVIDIA GeForce RTX 5090"),
        (A800, "delayed", "8-bit tensor cores, which NVIDIA A800-SXM4-80GB (compute capability 8.0) is not"),
        (CPU, "delayed", ""),
    ],
)
def test_8_bits_need_the_gpu_for_it(machine, fp8_recipe, told, recipe):
    found = words(machine, recipe("precision.dtype=bf16", fp8(fp8_recipe)))
    assert told in found and bool(told) == bool(found)


def test_versions_are_named(recipe):
    config = recipe("precision.dtype=bf16", fp8("blockwise"))
    old = dataclasses.replace(H100, cuda_version="12.4", te="2.1", te_cuda=13)
    found = words(old, config)
    assert "torch 2.13.0+cu130 with CUDA 12.4, Transformer Engine 2.1 for CUDA 13" in found
    assert "needs a Hopper GPU and CUDA 12.9" in found and "needs Transformer Engine 2.3; 2.1 is installed" in found
    assert words(old, recipe("precision.dtype=bf16", fp8("delayed")), backend="torch") == ""


def test_gradient_accumulation_fusion_needs_apex(recipe):
    config = recipe("kernels.gradient_accumulation_fusion=true")
    assert "apex's fused_weight_gradient_mlp_cuda" in words(H100, config)
    assert words(A800, config) == "" and words(CPU, config, "torch") == ""


TE = "model.backend=te"
TORCH = "model.backend=torch"


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ([TORCH, fp8("mxfp8")], "precision.fp8.recipe"),
        ([TORCH, "precision.fp8={param_gather: true}"], "precision.fp8.param_gather"),
        ([TORCH, "kernels.rope_fusion=true"], "kernels.rope_fusion"),
        ([TORCH, "kernels.cuda_graphs=true"], "kernels.cuda_graphs"),
        ([TE, "precision.fp8={first_last_layers_bf16: true}"], "precision.fp8.first_last_layers_bf16"),
        ([TE, "precision.dtype=fp32", fp8("delayed")], "precision.dtype"),
        ([TE, "data.document_mask=true", "train.micro_batch_size=2"], "train.micro_batch_size"),
        ([TE, "data.document_mask=true", "parallel.cp_size=2"], "parallel.cp_size"),
        (["precision.dtype=fp16", fp8("delayed")], "precision.dtype"),
        (
            [TE, "precision.fp8={param_gather: true}", "parallel.distributed_optimizer=false"],
            "precision.fp8.param_gather",
        ),
        (
            [
                TE,
                "precision.fp8={recipe: mxfp8, param_gather: true}",
                "parallel={overlap_grad_reduce: true, overlap_param_gather: true}",
            ],
            "parallel.overlap_param_gather",
        ),
        (["parallel.tp_comm_overlap=true"], "parallel.tp_comm_overlap"),
        ([TE, "kernels.cuda_graphs=true", "train.recompute=full"], "kernels.cuda_graphs"),
        ([TE, "kernels.cuda_graphs=true", "model.hidden_dropout=0.1"], "kernels.cuda_graphs"),
        (
            ["parallel={tp_size: 2, sequence_parallel: true, tp_comm_overlap: true}", "kernels.deterministic=true"],
            "kernels.deterministic",
        ),
        (
            ["model.hidden_size=40", "model.num_attention_heads=5", "model.num_query_groups=5", fp8("delayed")],
            "model.hidden_size",
        ),
        (
            ["model.ffn_hidden_size=48", "parallel.tp_size=2", fp8("delayed")],
            "model.ffn_hidden_size / parallel.tp_size",
        ),
        ([TE, fp8("blockwise")], "model.hidden_size"),
        (["model.seq_length=24", fp8("tensorwise")], "train.micro_batch_size * model.seq_length / parallel.cp_size"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_our_words(overrides, where, recipe):
    problems = find_problems(recipe("precision.dtype=bf16", *overrides), world_size=2)
    found = [problem for problem in problems if problem.where == where]
    assert found, [str(problem) for problem in problems]
    assert found[0].fix


def test_the_backend_that_is_chosen_is_held_to_the_recipe(recipe):
    config = recipe("precision.dtype=bf16", fp8("tensorwise"), "kernels.rope_fusion=true")
    assert not find_problems(config, 1), "with backend auto it may suit the machine that runs it"
    assert [problem.where for problem in backend_problems(config, "torch")] == ["kernels.rope_fusion"]
    assert not backend_problems(config, "te")


@pytest.mark.slow
def test_training_here_names_what_only_a_gpu_can_do(recipe, tmp_path):
    """As a user meets it: the command, its exit code and its words."""
    import subprocess
    import sys

    from megatron_sky.config import dump_config

    path = tmp_path / "recipe.yaml"
    path.write_text(dump_config(recipe("kernels.rope_fusion=true")))
    done = subprocess.run(
        [sys.executable, "-m", "megatron_sky", "train", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "kernels.rope_fusion" in done.stderr and "Traceback" not in done.stderr


EXAMPLES = Path(__file__).parents[3] / "examples/skywork_13b"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("gpu_*.yaml")), ids=lambda path: path.stem)
def test_the_gpu_recipes_suit_their_machine(path):
    config = load_config([EXAMPLES / "model.yaml", EXAMPLES / "sessions.yaml", path])
    backend = "torch" if config.model.backend == "torch" else "te"
    machine = dataclasses.replace(B200 if "blackwell" in path.stem else H100, apex=True)
    assert find_problems(config, 512) == [] and backend_problems(config, backend) == []
    assert words(machine, config, backend) == ""


def test_a_recipes_name_is_enough(recipe):
    config = recipe("precision.dtype=bf16", "precision.fp8=tensorwise")
    assert config.precision.fp8.recipe == "tensorwise"
    assert str(config.precision) == "bf16 with fp8 products (tensorwise)"


def test_a_dry_run_says_which_backend_it_takes(recipe, capsys):
    from megatron_sky.trainer.dry_run import print_plan

    print_plan(recipe("precision.dtype=bf16", "precision.fp8=tensorwise", "kernels.rope_fusion=true"), 1)
    assert "only the te backend can do what the recipe asks for" in capsys.readouterr().out
