"""A run of Megatron-LM's own trainer taken over in mid-flight and handed back: the losses go on as its own do.

They need a copy of Megatron-LM: MEGATRON_LM names its folder, its version is that of the installed megatron-core.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import pytest

from megatron_sky.config import strict_yaml
from megatron_sky.migrate.recipe import translate
from tests.megatron_lm import entry
from tests.megatron_lm.cases import ON_A_CPU, Case, arguments, words, write_tokens
from tests.megatron_lm.compare import run_training
from tests.megatron_lm.record import lend_helpers, version_of

pytestmark = pytest.mark.slow
STEPS, TAKEN_AT, BACK_AT = 30, 10, 20
LLAMA = {"group-query-attention": True, "num-query-groups": 2, "train-iters": STEPS, "save-interval": 10}
LLAMA |= {"lr-warmup-iters": 4, "make-vocab-size-divisible-by": 64}
SOURCES = ("0.7", "web", "0.3", "books")


@dataclass(frozen=True)
class Way:
    """How Megatron-LM runs and saves, and the layout that goes on with it."""

    flags: dict
    theirs: int = 1
    """Ranks of Megatron-LM."""
    ours: int = 1
    parallel: tuple[tuple[str, int], ...] = ()
    back: tuple[str, ...] = ()
    """Options of `to-megatron`, which hands back to one rank."""
    back_flags: tuple[str, ...] = ()


DISTRIBUTED = {"use-distributed-optimizer": True}
WAYS = {
    "one process": Way({}, back_flags=("--use-checkpoint-args",)),
    "distributed optimizer of two, here TP 2": Way(DISTRIBUTED, 2, 2, (("tp_size", 2),), (), tuple(words(DISTRIBUTED))),
    "fully reshardable, here PP 2": Way(
        DISTRIBUTED | {"dist-ckpt-optim-fully-reshardable": True},
        2,
        2,
        (("pp_size", 2),),
        (),
        tuple(words(DISTRIBUTED)),
    ),
    "mp_rank files of TP 2, here one process": Way(
        {"ckpt-format": "torch", "tensor-model-parallel-size": 2, "make-vocab-size-divisible-by": 32},
        2,
        parallel=(("tp_size", 1),),
        back=("--format", "torch"),
        back_flags=("--ckpt-format", "torch", "--no-load-rng"),
    ),
}


@pytest.fixture(scope="module")
def copy() -> Path:
    given = os.environ.get("MEGATRON_LM")
    if not given:
        pytest.skip("MEGATRON_LM names no copy of Megatron-LM")
    folder, installed = Path(given).resolve(), metadata.version("megatron-core")
    if version_of(folder) != installed:
        pytest.skip(f"MEGATRON_LM is of {version_of(folder)}, the installed megatron-core of {installed}")
    lend_helpers(folder)
    return folder


@pytest.fixture(scope="module")
def megatron_lm(copy):
    """`megatron_lm(words, world_size, folder)`: the facts of every step of Megatron-LM's trainer."""
    with ProcessPoolExecutor(1, get_context("spawn"), entry.load, (copy,)) as apart:
        script = copy / "pretrain_gpt.py"
        yield lambda words, ranks, folder: apart.submit(
            entry.run_ranks, script, words, world_size=ranks, folder=folder
        ).result()


@pytest.mark.parametrize("name", WAYS)
def test_taken_over_and_handed_back(name, copy, megatron_lm, ranks, sky, tmp_path):
    way, version, saved, run = WAYS[name], version_of(copy), tmp_path / "theirs", tmp_path / "run"
    write_tokens(tmp_path / "tokens")
    case = Case(LLAMA | way.flags, sources=SOURCES)
    given = arguments(case, version, tmp_path / "tokens")
    alone = [*words(ON_A_CPU), "--data-cache-path", str(tmp_path / "cache")]
    theirs = megatron_lm([*given, *alone, "--save", str(saved)], way.theirs, tmp_path)
    losses = [step["loss"] for step in theirs]
    assert len(losses) == STEPS and losses[-1] < losses[TAKEN_AT] - 0.3, "the reference itself must learn"

    recipe = translate(given, same_order=True, megatron=version).recipe
    recipe["parallel"] |= dict(way.parallel)
    recipe["train"]["run_dir"] = str(run)
    recipe |= {"monitor": {"tensorboard": False}, "checkpoint": {"interval": "10 steps"}}
    (tmp_path / "recipe.yaml").write_text(strict_yaml.dump(recipe), encoding="utf-8")
    _, _, error = taken = sky(
        *("convert", "from-megatron", saved / f"iter_{TAKEN_AT:07d}", run, "--with-optimizer"),
        *("--recipe", tmp_path / "recipe.yaml"),
    )
    assert taken[0] == 0, error
    ours = [loss for loss, _, _ in ranks(way.ours, run_training, json.dumps(recipe))[0]]
    taken_apart = max(abs(a - b) for a, b in zip(ours, losses[TAKEN_AT:], strict=True))
    assert taken_apart <= 1e-6

    back = tmp_path / "back"
    _, _, error = handed = sky(
        *("convert", "to-megatron", run / f"checkpoints/step_{BACK_AT:07d}", back, "--transformer-impl", "local"),
        *way.back,
    )
    assert handed[0] == 0, error
    plain = arguments(Case(LLAMA, sources=SOURCES), version, tmp_path / "tokens")
    theirs = megatron_lm([*plain, *alone, *way.back_flags, "--load", str(back)], 1, tmp_path)
    last = [step["loss"] for step in theirs]
    apart = max(abs(a - b) for a, b in zip(last, losses[BACK_AT:], strict=True))
    print(f"\n{version} {name}: {len(ours)} losses {taken_apart:.1e} apart; back, {len(last)} losses {apart:.1e} apart")
    assert apart <= 1e-6
