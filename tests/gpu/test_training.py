"""Short runs on one GPU: backends agree, 8 bits stay near bf16, documents stay apart, checkpoints cross backends."""

import pytest

from tests.trainer.test_parity import run_training

# Widths that Transformer Engine's attention and 8-bit kernels take.
MODEL = [
    "model.hidden_size=256",
    "model.ffn_hidden_size=512",
    "model.kv_channels=64",
    "model.seq_length=128",
    "precision.dtype=bf16",
    "schedule.lr=1e-3",
]


def te_or_skip() -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="Transformer Engine is not installed")


def capability_or_skip(wanted: tuple[int, int]) -> None:
    import torch

    found = torch.cuda.get_device_capability()
    if found < wanted:
        pytest.skip(f"needs compute capability {wanted}; this GPU has {found}")


@pytest.fixture
def trained(ranks, recipe, tmp_path):
    """`trained(run folder, "key=value", ...)`: (lm_loss, grad_norm) of every step, then of validation."""
    from megatron_sky.config import dump_config

    def run(name: str, *overrides: str) -> list[tuple[float, float]]:
        config = recipe(f"train.run_dir={tmp_path / name}", "train.max_steps=8", *MODEL, *overrides)
        return ranks(1, run_training, dump_config(config))[0]

    return run


def near(got: list, want: list, share: float) -> None:
    for (loss, _), (loss_wanted, _) in zip(got, want, strict=True):
        assert abs(loss - loss_wanted) <= share * loss_wanted


@pytest.mark.parametrize("documents", ["false", "true"])
def test_the_backends_agree(documents, trained):
    te_or_skip()
    mask = f"data.document_mask={documents}"
    near(trained("te", mask, "model.backend=te"), trained("torch", mask, "model.backend=torch"), 0.005)


@pytest.mark.parametrize("backend", ["torch", "te"])
@pytest.mark.parametrize("fp8_recipe", ["delayed", "tensorwise"])
def test_8_bits_stay_near_bf16(backend, fp8_recipe, trained):
    capability_or_skip((8, 9))
    if backend == "te":
        te_or_skip()
    settings = f"model.backend={backend}"
    near(trained("fp8", settings, f"precision.fp8={{recipe: {fp8_recipe}}}"), trained("bf16", settings), 0.01)


@pytest.mark.parametrize(("first", "second"), [("torch", "te"), ("te", "torch")])
def test_checkpoints_cross_the_backends(first, second, trained):
    te_or_skip()
    whole = trained("whole", f"model.backend={first}")
    trained("halves", f"model.backend={first}", "train.max_steps=4")
    near(trained("halves", f"model.backend={second}"), whole, 0.005)


@pytest.mark.parametrize(
    "option", ["kernels.deterministic=true", "kernels.cross_entropy_fusion=false", "kernels.rope_fusion=true"]
)
def test_kernel_options_change_nothing_but_the_speed(option, trained):
    if "rope" in option:
        te_or_skip()
    near(trained("with", option), trained("without"), 0.005)


def test_deterministic_runs_repeat_bit_for_bit(trained):
    assert trained("first", "kernels.deterministic=true") == trained("second", "kernels.deterministic=true")
