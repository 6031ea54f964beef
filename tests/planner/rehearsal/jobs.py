"""Small jobs for the tests of rehearsals, and many of them in one process."""

from megatron_sky.config import Config
from megatron_sky.config.load import load_recipe
from megatron_sky.planner.rehearsal import Rehearsal, Request, rehearse_all, stage_ranks

LAYERS, HIDDEN, LENGTH, VOCABULARY = 4, 64, 128, 1024
TINY = [
    f"model.vocab_size={VOCABULARY}",
    f"model.hidden_size={HIDDEN}",
    "model.ffn_hidden_size=128",
    f"model.num_layers={LAYERS}",
    "model.num_attention_heads=4",
    f"model.seq_length={LENGTH}",
    "schedule.lr=1e-3",
    "train.run_dir=/nowhere",
    "train.tokens=1M",
    "train.global_batch_size=8",
]
GPT = [
    "model.normalization=layernorm",
    "model.activation=gelu",
    "model.add_bias_linear=true",
    "model.position_embedding=learned_absolute",
    "model.hidden_dropout=0.1",
    "model.attention_dropout=0.1",
]


def tiny(*overrides: str) -> Config:
    return load_recipe([*TINY, *overrides])


def rehearse_layouts(layouts: dict[str, tuple[int, list[str]]]) -> dict[str, list[Rehearsal]]:
    """Every stage of each layout (ranks, overrides over TINY), in one process."""
    names, requests = [], []
    for name, (world_size, overrides) in layouts.items():
        config = tiny(*overrides)
        for rank in stage_ranks(config, world_size):
            names.append(name)
            requests.append(Request(config, world_size, rank))
    stages: dict[str, list[Rehearsal]] = {name: [] for name in layouts}
    for name, result in zip(names, rehearse_all(requests), strict=True):
        stages[name].append(result)
    return stages
