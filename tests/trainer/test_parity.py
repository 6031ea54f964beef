"""The definition of correct: every layout trains as one process does, and a resumed run as one that never stopped."""

import pytest

from megatron_sky.config import Config
from megatron_sky.monitor.metrics import read_metrics
from tests.recipes import config_of
from tests.slow import slow_except

STEPS = 6


def run_training(info, config_text: str) -> list[tuple[float, float]]:
    """Trains as one rank; on rank 0 (lm_loss, grad_norm) of every step and the last validation loss."""

    from megatron_sky.trainer.run import train

    config = config_of(config_text)
    train(config, info)
    return numbers(config) if info.rank == 0 else []


def numbers(config: Config) -> list[tuple[float, float]]:
    metrics = read_metrics(config.train.run_dir)
    steps = [(record.lm_loss, record.grad_norm) for record in metrics.train]
    return [*steps, *((record.lm_loss, 0.0) for record in metrics.validation[-1:])]


@pytest.fixture
def trained(ranks, recipe, tmp_path):
    """`trained(world_size, name, "key=value", ...)`: that run's numbers."""
    from megatron_sky.config import dump_config

    def run(world_size: int, name: str, *overrides: str) -> list[tuple[float, float]]:
        config = recipe(f"train.run_dir={tmp_path / name}", f"train.max_steps={STEPS}", *overrides)
        return ranks(world_size, run_training, dump_config(config))[0]

    return run


OVERLAPS = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true", "parallel.grad_bucket_size=5000"]

LAYOUTS = {
    "tp2": (2, ["parallel.tp_size=2"]),
    "tp2_sp": (2, ["parallel.tp_size=2", "parallel.sequence_parallel=true"]),
    "pp2": (2, ["parallel.pp_size=2"]),
    "pp2_vpp2": (2, ["parallel.pp_size=2", "parallel.vpp_size=2"]),
    "dp2": (2, ["parallel.distributed_optimizer=false"]),
    "dp2_zero1_overlap": (2, OVERLAPS),
    "pp2_vpp2_dp2_zero1_overlap": (4, ["parallel.pp_size=2", "parallel.vpp_size=2", *OVERLAPS]),
    "cp2": (2, ["parallel.cp_size=2"]),
    "cp2_dp2": (4, ["parallel.cp_size=2"]),
    "tp2_pp2_dp2": (8, ["parallel.tp_size=2", "parallel.pp_size=2", "parallel.sequence_parallel=true"]),
}


@pytest.fixture(scope="module")
def reference(ranks, corpus, tmp_path_factory):
    """The one-process run that all layouts are held against."""
    return {}


@pytest.mark.parametrize("name", slow_except(LAYOUTS, "tp2", "pp2", "dp2", "cp2_dp2"))
def test_layout_trains_as_one_process(name, trained, reference):
    if "one" not in reference:
        reference["one"] = trained(1, "one")
    world_size, overrides = LAYOUTS[name]
    got, want = trained(world_size, name, *overrides), reference["one"]
    assert len(got) == len(want) == STEPS + 1
    for (loss, norm), (loss_one, norm_one) in zip(got, want, strict=True):
        assert abs(loss - loss_one) <= 1e-5
        assert abs(norm - norm_one) <= 1e-4 * norm_one
    assert want[-2][0] < want[0][0] - 0.3, "the reference itself must learn"


OTHER_MODELS = {
    "gpt": [
        "model.position_embedding=learned_absolute",
        "model.normalization=layernorm",
        "model.activation=gelu",
        "model.add_bias_linear=true",
        "model.tie_embeddings=true",
    ],
    "documents_apart": ["data.document_mask=true", "data.mask_document_ends=true"],
    "recompute_full": ["train.recompute=full"],
    "recompute_selective": ["train.recompute=selective"],
}


@pytest.mark.parametrize("name", slow_except(OTHER_MODELS, "gpt"))
def test_other_models_in_a_layout(name, trained):
    one = trained(1, "one", *OTHER_MODELS[name])
    four = trained(4, "four", "parallel.tp_size=2", "parallel.pp_size=2", *OTHER_MODELS[name])
    for (loss, norm), (loss_one, norm_one) in zip(four, one, strict=True):
        assert abs(loss - loss_one) <= 1e-5
        assert abs(norm - norm_one) <= 1e-4 * norm_one


@pytest.mark.slow
def test_recomputation_changes_nothing(trained):
    assert trained(1, "plain") == trained(1, "full", "train.recompute=full")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_low_precision_learns_as_fp32(dtype, trained):
    fp32 = trained(1, "fp32")
    low = trained(2, dtype, f"precision.dtype={dtype}", "parallel.tp_size=2", "precision.initial_loss_scale=128")
    for (loss, _), (loss_fp32, _) in zip(low, fp32, strict=True):
        assert abs(loss - loss_fp32) <= 0.05


@pytest.mark.slow
def test_resume_in_the_same_layout_is_bit_exact(trained):
    dropout = ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"]  # random numbers must be resumed as well
    whole = trained(2, "whole", "parallel.tp_size=2", *dropout)
    trained(2, "halves", "parallel.tp_size=2", f"train.max_steps={STEPS // 2}", *dropout)
    assert trained(2, "halves", "parallel.tp_size=2", *dropout) == whole


RESHARD = {
    "one_to_tp2": ((1, []), (2, ["parallel.tp_size=2"])),
    "tp2_to_pp2": ((2, ["parallel.tp_size=2"]), (2, ["parallel.pp_size=2"])),
    "pp2_vpp2_to_dp2": ((2, ["parallel.pp_size=2", "parallel.vpp_size=2"]), (2, [])),
    "dp2_to_cp2_mbs2": ((2, []), (2, ["parallel.cp_size=2", "train.micro_batch_size=2"])),
    "tp2_pp2_to_one": ((4, ["parallel.tp_size=2", "parallel.pp_size=2"]), (1, [])),
}


@pytest.mark.parametrize("name", slow_except(RESHARD, "one_to_tp2"))
def test_resume_in_another_layout(name, trained, reference):
    if "one" not in reference:
        reference["one"] = trained(1, "one")
    (first_size, first), (second_size, second) = RESHARD[name]
    trained(first_size, name, f"train.max_steps={STEPS // 2}", *first)
    got = trained(second_size, name, *second)
    assert len(got) == STEPS + 1
    for (loss, norm), (loss_one, norm_one) in zip(got, reference["one"], strict=True):
        assert abs(loss - loss_one) <= 1e-5
        assert abs(norm - norm_one) <= 1e-4 * max(norm_one, 1e-9)


def test_a_document_does_not_see_the_one_before(ranks, recipe, tmp_path):
    """Changing a document's tokens changes the losses of its own row's later documents only without the mask."""
    from megatron_sky.config import dump_config

    told = {mask: ranks(1, leak, dump_config(recipe(f"data.document_mask={mask}")))[0] for mask in (True, False)}
    assert told[True] == 0.0
    assert told[False] > 1e-4


def leak(info, config_text: str) -> float:
    """How much the second document's losses move when the first one's tokens change."""

    import torch

    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model

    config = config_of(config_text)
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        sections = {"parallel": config.parallel, "precision": config.precision, "train": config.train}
        model = build_model(config.model, **sections, context=context, ddp=False).chunks[0].eval()
        first = torch.randint(0, 700, (1, 32), generator=torch.Generator().manual_seed(1))
        second = first.clone()
        second[:, :10] = torch.randint(0, 700, (1, 10), generator=torch.Generator().manual_seed(2))
        documents = torch.tensor([0, 10, 32], dtype=torch.int32) if config.data.document_mask else None
        with torch.no_grad():
            losses = [
                model(each, torch.arange(32)[None], documents, labels=first.roll(-1, 1)) for each in (first, second)
            ]
        return (losses[0] - losses[1])[:, 10:].abs().max().item()
