"""A rehearsal counts what the program does: held to arithmetic and to published measurements."""

import pytest

from megatron_sky.config.load import load_recipe
from megatron_sky.planner.rehearsal import Rehearsal, Request, rehearse_all, stage_ranks

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY, LENGTH = 4, 64, 128, 4, 1024, 128
TINY = [
    f"model.vocab_size={VOCABULARY}",
    f"model.hidden_size={HIDDEN}",
    f"model.ffn_hidden_size={FFN}",
    f"model.num_layers={LAYERS}",
    f"model.num_attention_heads={HEADS}",
    f"model.seq_length={LENGTH}",
    "schedule.lr=1e-3",
    "train.run_dir=/nowhere",
    "train.tokens=1M",
    "train.global_batch_size=8",
]


def tiny(*overrides: str):
    return load_recipe([*TINY, *overrides])


def rehearse_layouts(layouts: dict[str, tuple[int, list[str]]]) -> dict[str, list[Rehearsal]]:
    """Every stage of each layout, in one process."""
    requests, names = [], []
    for name, (world_size, overrides) in layouts.items():
        config = tiny(*overrides)
        for rank in stage_ranks(config, world_size):
            requests.append(Request(config, world_size, rank))
            names.append(name)
    results: dict[str, list[Rehearsal]] = {name: [] for name in layouts}
    for name, result in zip(names, rehearse_all(requests), strict=True):
        results[name].append(result)
    return results


LAYOUTS = {
    "one": (1, []),
    "tp2": (2, ["parallel.tp_size=2"]),
}


@pytest.fixture(scope="module")
def rehearsals() -> dict[str, list[Rehearsal]]:
    return rehearse_layouts(LAYOUTS)


def test_state_is_what_arithmetic_says(rehearsals):
    for name, stages in rehearsals.items():
        print(name, [s.state for s in stages], [s.parameters for s in stages])
