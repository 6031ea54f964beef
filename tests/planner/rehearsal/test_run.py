"""A rehearsal counts what the program does: held to arithmetic, in every layout, and to published measurements."""

import csv
from pathlib import Path

import pytest

from megatron_sky.config.load import load_recipe
from megatron_sky.distributed.topology import Layout
from megatron_sky.model.flops import flops_per_token, num_parameters
from megatron_sky.planner.published import OWN
from megatron_sky.planner.rehearsal import Rehearsal, Request, rehearse, rehearse_all, rehearse_stages
from tests.planner.rehearsal.jobs import GPT, HIDDEN, LAYERS, LENGTH, VOCABULARY, rehearse_layouts, tiny

ROOT = Path(__file__).parents[3]
SKYWORK = [str(ROOT / f"examples/skywork_13b/{name}.yaml") for name in ("model", "sessions")]
TP2, SP = "parallel.tp_size=2", "parallel.sequence_parallel=true"
PP2, VPP2, CP2 = "parallel.pp_size=2", "parallel.vpp_size=2", "parallel.cp_size=2"
OVERLAPS = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
DOCUMENTS, GROUPS = "data.document_mask=true", "model.num_query_groups=2"

QUICK: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "tp2 sp": (2, [TP2, SP]),
    "pp2 vpp2": (2, [PP2, VPP2]),
    "everything": (32, [TP2, SP, PP2, VPP2, CP2, *OVERLAPS]),
    "fp8": (2, [TP2, SP, "precision.fp8=tensorwise"]),
    "documents, grouped queries": (1, [DOCUMENTS, GROUPS]),
    "fp32": (2, ["precision.dtype=fp32"]),
}
MORE: dict[str, tuple[int, list[str]]] = {
    "tp2": (2, [TP2]),
    "pp4": (4, ["parallel.pp_size=4"]),
    "pp2 vpp2, sends that wait": (2, [PP2, VPP2, "parallel.overlap_p2p=false"]),
    "cp2, grouped queries": (2, [CP2, GROUPS]),
    "dp2 without zero-1": (2, ["parallel.distributed_optimizer=false"]),
    "dp2 without zero-1, overlap": (2, ["parallel.distributed_optimizer=false", OVERLAPS[0]]),
    "dp4": (4, OVERLAPS),
    "fp16": (2, ["precision.dtype=fp16"]),
    "16-bit gradients": (2, ["precision.grad_reduce_in_fp32=false"]),
    "fp8 delayed": (2, [TP2, SP, "precision.fp8=delayed"]),
    "fp8 without sp": (2, [TP2, "precision.fp8=delayed"]),
    "documents, pp4": (4, [DOCUMENTS, "parallel.pp_size=4"]),
    "documents, cp2": (2, [DOCUMENTS, CP2]),
    "grouped queries": (1, [GROUPS]),
    "tied, pp2": (2, ["model.tie_embeddings=true", PP2]),
    "gpt, tp2 sp": (2, [*GPT, TP2, SP]),
    "gpt, pp2": (2, [*GPT, PP2]),
    "apex's gradients": (1, ["kernels.gradient_accumulation_fusion=true"]),
    "plain cross-entropy": (2, [TP2, "kernels.cross_entropy_fusion=false"]),
    "head of 20": (1, ["model.kv_channels=20"]),
    "rope scaling": (1, ["model.rope_scaling={kind: llama3, factor: 8}"]),
    "no clipping": (1, ["optimizer.clip_grad=0"]),
    "one micro batch on four stages": (4, ["parallel.pp_size=4", "train.global_batch_size=1"]),
    "as many micro batches as interleaved stages": (2, [PP2, VPP2, "train.global_batch_size=2"]),
    "cp4, tp2 sp": (16, ["parallel.cp_size=4", TP2, SP]),
    "documents, cp2, grouped queries": (4, [DOCUMENTS, CP2, GROUPS]),
    "fp32, cp2": (2, [CP2, "precision.dtype=fp32"]),
    "fp32, cp2, grouped queries": (2, [CP2, GROUPS, "precision.dtype=fp32"]),
    "documents, fp32, grouped queries": (1, [DOCUMENTS, GROUPS, "precision.dtype=fp32"]),
    "learned positions, cp2": (8, [PP2, CP2, TP2, "model.position_embedding=learned_absolute"]),
    "small buckets": (4, [*OVERLAPS, "parallel.grad_bucket_size=20000"]),
    "ends in 16 bits": (2, [PP2, "precision.fp8={recipe: delayed, first_last_layers_bf16: true}"]),
    "gpt, tied, interleaved": (8, [*GPT, "model.tie_embeddings=true", PP2, VPP2, TP2, SP]),
    "validation, interleaved": (4, [PP2, VPP2, "validation.sets=[{name: a, path: /nowhere}]", *OVERLAPS]),
}


@pytest.fixture(scope="module")
def quick() -> dict[str, list[Rehearsal]]:
    return rehearse_layouts(QUICK)


@pytest.fixture(scope="module")
def more() -> dict[str, list[Rehearsal]]:
    return rehearse_layouts(MORE)


@pytest.mark.parametrize("name", QUICK)
def test_counts_are_what_arithmetic_says(name, quick):
    check_counts(*QUICK[name], quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_counts_of_more_layouts_are_what_arithmetic_says(name, more):
    check_counts(*MORE[name], more[name])


def check_counts(world_size: int, overrides: list[str], stages: list[Rehearsal]) -> None:
    config = tiny(*overrides)
    layout = Layout.of(config.parallel, world_size)
    check_parameters(config, layout, stages)
    for stage in stages:
        check_state(config, layout, stage)
        check_waits(config, stage)
        assert sum(stage.peak_by_part.values()) == stage.peak_bytes == max(stage.peaks.values())
        held = {part: stage.peak_by_part.get(part, 0) for part in ("weights", "gradients", "optimizer")}
        assert held == {part: stage.state[part] for part in held}
        assert {"forward and backward", "gradient reduction", "optimizer"} <= stage.peaks.keys()
    check_operations(config, layout, stages)
    check_traffic(config, layout, stages)


def check_waits(config, stage: Rehearsal) -> None:
    """The gradients' norm and the loss, which the loop judges before the update, are read together, and nothing else.

    fp16 asks whether the gradients overflowed as well, and whether the loss scale was the smallest.
    """
    waits = {}
    for wait in stage.waits:
        name = wait.line.partition(":")[0].removeprefix("megatron_sky/")
        waits[name] = waits.get(name, 0) + wait.calls
    assert waits == {"optim/update.py": 4 if config.precision.dtype == "fp16" else 1}


def check_parameters(config, layout: Layout, stages: list[Rehearsal]) -> None:
    """What is split over tensor-parallel ranks and what each of them holds whole, over all stages."""
    held = sum(stage.parameters for stage in stages)
    whole = num_parameters(config.model, padded=True)
    if config.model.tie_embeddings:
        whole += VOCABULARY * HIDDEN if layout.pp_size > 1 else 0  # a copy on the last stage
    if layout.tp_size == 1:
        assert held == whole
    else:
        assert whole / layout.tp_size < held < 1.1 * whole / layout.tp_size


def check_state(config, layout: Layout, stage: Rehearsal) -> None:
    """Exact, but for what rounds a tensor up to 512 bytes and a buffer up to a whole part for each rank."""
    p, parameters = config.precision, stage.parameters
    sharded = config.parallel.distributed_optimizer
    ranks = layout.dp_size * layout.cp_size if sharded else 1
    width = {"fp32": 4, "bf16": 2, "fp16": 2}[p.dtype]
    expected = {
        "weights": parameters * width,
        "gradients": parameters * (4 if p.grad_reduce_in_fp32 or p.dtype == "fp32" else 2),
        "optimizer": parameters * (8 if p.dtype == "fp32" else 12) / ranks,
    }
    tensors = 3 * 16 * LAYERS
    for part, size in expected.items():
        assert size <= stage.state[part] <= size + 512 * tensors, part


def check_operations(config, layout: Layout, stages: list[Rehearsal]) -> None:
    """6 N + 12 L h s a token (model/flops.py), without what is no product: embeddings, norms and biases."""
    tokens = config.train.global_batch_size * LENGTH
    alike = layout.tp_size * layout.cp_size * layout.dp_size
    total: dict[str, float] = {}
    for stage in stages:
        for operator, flops in stage.flops.items():
            total[operator] = total.get(operator, 0) + flops * alike / tokens
    products = total.get("mm", 0) + total.get("addmm", 0) + total.get("_scaled_mm", 0)
    attention = sum(total.get(f"{kind}_attention", 0) for kind in ("flash", "efficient"))
    backward = sum(total.get(f"{kind}_attention_backward", 0) for kind in ("flash", "efficient"))
    model = config.model
    vectors = num_parameters(model, padded=True) - VOCABULARY * HIDDEN * (1 if model.tie_embeddings else 2)
    matrices = model.num_layers * (
        HIDDEN * (2 * model.num_attention_heads + 2 * model.query_groups) * model.head_size
        + HIDDEN * model.ffn_hidden_size * (3 if model.activation == "swiglu" else 2)
    )
    vectors -= matrices
    assert products == 6 * (matrices + VOCABULARY * HIDDEN)
    padded = -(-model.head_size // 8) * 8 / model.head_size
    cp = layout.cp_size  # each of a rank's two chunks is given the keys up to its own end
    keys = LENGTH if cp == 1 else LENGTH * (2 * cp + 1) / (4 * cp)
    assert attention == 4 * model.num_layers * model.num_attention_heads * model.head_size * padded * keys
    assert backward == 2.5 * attention, "which computes the scores once more than the formula counts"
    attention *= LENGTH / keys
    no_products = vectors + (0 if model.tie_embeddings else VOCABULARY * HIDDEN)
    assert products + 3 * attention / padded == pytest.approx(flops_per_token(model) - 6 * no_products, rel=1e-12)
    assert "bmm" not in total, "attention that holds all scores"


def check_traffic(config, layout: Layout, stages: list[Rehearsal]) -> None:
    p, n = config.parallel, config.train.global_batch_size // layout.dp_size
    width = 4 if config.precision.dtype == "fp32" else 2
    shared = layout.dp_size * layout.cp_size
    sequence = LENGTH // layout.cp_size // (layout.tp_size if p.sequence_parallel else 1)
    for stage in stages:
        moved = {(each.collective, each.group): each.bytes for each in stage.traffic}
        ranks = {each.group: each.group_size for each in stage.traffic}
        assert "other" not in ranks
        data = "DP x CP" if layout.cp_size > 1 else "DP"
        if shared > 1 and p.distributed_optimizer:
            assert moved["reduce_scatter_tensor", data] == pytest.approx(stage.state["gradients"], rel=0.01)
            assert moved["all_gather_into_tensor", data] == pytest.approx(stage.state["weights"], rel=0.01)
            assert ranks[data] == shared
        elif shared > 1:
            assert moved["all_reduce", data] == pytest.approx(stage.state["gradients"], rel=0.01)
        if layout.pp_size > 1:
            at_an_end = stage.stage in (0, layout.pp_size - 1)
            sends = 2 * layout.vpp_size - at_an_end  # each chunk to both sides, but at the whole model's two ends
            assert moved["send", "PP"] == moved["receive", "PP"] == sends * n * sequence * HIDDEN * width


def test_micro_batches_that_are_not_run_are_counted():
    layouts = {str(size): (2, [PP2, f"train.global_batch_size={size}"]) for size in (4, 12)}
    few, many = rehearse_layouts(layouts).values()
    for short, long in zip(few, many, strict=True):
        assert (short.rehearsed_microbatches, long.rehearsed_microbatches, long.num_microbatches) == (4, 4, 12)
        assert {name: 3 * flops for name, flops in short.flops.items()} == long.flops
        assert short.peak_by_part == long.peak_by_part


def test_recomputation_saves_memory_and_costs_operations():
    kinds = rehearse_layouts({kind: (1, [f"train.recompute={kind}"]) for kind in ("none", "selective", "full")})
    none, selective, full = (stages[0] for stages in kinds.values())
    assert full.peak_by_part["activations"] < none.peak_by_part["activations"] / 4
    assert selective.flops["flash_attention"] == full.flops["flash_attention"] == 2 * none.flops["flash_attention"]
    output_layer = 6 * VOCABULARY * HIDDEN * 8 * LENGTH
    assert full.flops["mm"] - output_layer == pytest.approx((none.flops["mm"] - output_layer) * 4 / 3)


def test_no_mask_grows_with_the_square_of_the_sequence():
    """A context-parallel rank's chunks, and documents by their bounds: a mask of 4,096 x 8,192 would be 64 MiB."""
    jobs = {"chunks": [CP2, "parallel.pp_size=1"], "documents": [DOCUMENTS]}
    lengths = {4096: 2, 8192: 2}
    results = rehearse_layouts(
        {
            f"{name} {length}": (ranks, [*overrides, f"model.seq_length={length}", "model.num_layers=2"])
            for name, overrides in jobs.items()
            for length, ranks in lengths.items()
        }
    )
    for name in jobs:
        short, long = (results[f"{name} {length}"][0].peak_by_part["activations"] for length in lengths)
        assert long < 2.05 * short, name


def test_validation_with_a_larger_micro_batch_can_be_the_peak():
    sets = ["validation.sets=[{name: a, path: /nowhere}]", "validation.micro_batch_size=8"]
    result = rehearse(tiny(*sets), 1, 0)
    assert result.peak_phase == "validation"
    assert result.peak_by_part["logits"] > 8 * LENGTH * VOCABULARY * 4


def test_a_rank_alone_is_its_stage():
    config = tiny(PP2, TP2)
    by_rank, by_stage = rehearse_all([Request(config, 8, rank) for rank in (7, 4)])
    assert (by_rank.rank, by_rank.stage, by_stage.rank) == (7, 1, 4)
    assert by_rank.peak_by_part == pytest.approx(by_stage.peak_by_part, rel=0.01)  # shards are cut where it falls
    assert by_rank.operations == by_stage.operations


ERRORS = {
    "sky-skywork-dp256-pp2": 0.009,
    "sky-skywork-dp256-tp2": -0.049,
    "sky-skywork-dp128-tp2-pp2": 0.015,
    "sky-skywork-dp128-pp4": -0.012,
    "sky-skywork-dp128-tp4": -0.002,
    "sky-llama2-dp256-pp2": -0.006,
    "sky-llama2-dp256-tp2": -0.106,
    "sky-llama2-dp128-tp2-pp2": -0.015,
    "sky-llama2-dp128-pp4": -0.038,
    "sky-llama2-dp128-tp4": -0.070,
}


@pytest.mark.slow
def test_memory_is_as_near_to_what_the_report_measured_as_is_told():
    """The Skywork report, table 10, on 512 A800s; its GB taken as 10^9 bytes. Nothing is fitted (docs/rehearsal.md)."""
    with open(OWN, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in ERRORS]
    requests = []
    for row in rows:
        preset = "skywork_13b" if "skywork" in row["id"] else "llama2_13b"
        sizes = [f"model.preset={preset}", f"parallel.tp_size={row['tp']}", f"parallel.pp_size={row['pp']}"]
        requests.append(Request(load_recipe([*SKYWORK, *sizes]), 512, 0))
    errors = {
        row["id"]: first.peak_bytes / 1e9 / float(row["memory_gb"]) - 1
        for row, first in zip(rows, rehearse_all(requests), strict=True)
    }
    print(errors)
    assert errors == pytest.approx(ERRORS, abs=0.005)


@pytest.mark.slow
def test_the_stages_of_skywork_13b_on_512_gpus_add_up_to_the_model():
    config = load_recipe(SKYWORK)
    stages = rehearse_stages(config, 512)
    assert sum(stage.parameters for stage in stages) == num_parameters(config.model, padded=True)
    for stage in stages:
        assert stage.state["weights"] == pytest.approx(2 * stage.parameters, rel=1e-5)
        assert stage.state["gradients"] == pytest.approx(4 * stage.parameters, rel=1e-5)
        assert stage.state["optimizer"] == pytest.approx(12 * stage.parameters / 256, rel=1e-3)


def test_adapters_alone_have_gradients_and_an_optimizer():
    jobs = {"whole": (1, []), "adapters": (1, ["finetune={base: /nowhere, lora: {rank: 4}}"])}
    (whole,), (tuned,) = rehearse_layouts(jobs).values()
    adapters = tuned.parameters - whole.parameters
    assert 0 < adapters < 0.1 * whole.parameters
    assert tuned.state["gradients"] == 4 * adapters and tuned.state["optimizer"] == 12 * adapters
    assert whole.state["optimizer"] > 20 * tuned.state["optimizer"]
    assert tuned.peak_bytes < whole.peak_bytes
