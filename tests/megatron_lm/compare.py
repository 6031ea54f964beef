"""This package's numbers beside the recorded ones: `python -m tests.megatron_lm.compare [CASE ...]` prints the table of
docs/parity.md.

The recipe of a case is what `from-args --same-order` makes of its arguments.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron_sky.migrate.recipe import translate
from megatron_sky.monitor.metrics import read_metrics
from tests.megatron_lm.cases import CASES, RECORDED, arguments, of_version, write_tokens
from tests.megatron_lm.digests import weight_digests
from tests.recipes import config_of

VERSIONS = ("0.16.1", "0.19.1")
"""As megatron/core/package_info.py says it, that of the tag core_v0.19.0 says 0.19.1."""


@cache
def recorded(version: str) -> dict:
    """The facts of every recorded case."""
    path = RECORDED / f"{version}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def recipe_of(version: str, name: str, tokens: Path) -> dict:
    """The recipe that the case's arguments become."""
    translation = translate(arguments(CASES[name], version, tokens), same_order=True, megatron=version)
    assert [line.partition(":")[0] for line in translation.to_give] == ["train.run_dir"]
    assert not translation.no_counterpart
    return translation.recipe


def run_training(info, config_text: str) -> list[tuple[float, float, float]]:
    """Trains as one rank; (loss, gradient norm, learning rate) of every step on rank 0."""
    from megatron_sky.trainer.run import train

    config = config_of(config_text)
    train(config, info)
    if info.rank:
        return []
    return [(step.lm_loss, step.grad_norm, step.lr) for step in read_metrics(config.train.run_dir).train]


@dataclass(frozen=True)
class Run:
    """What a training of ours gave."""

    losses: list[float]
    grad_norms: list[float]
    learning_rates: list[float]
    weights: dict[str, list[float]]

    def loss_difference(self, facts: dict) -> float:
        """The largest of a step, in nats a token."""
        return max(abs(a - b) for a, b in zip(self.losses, facts["losses"], strict=True))

    def norm_difference(self, facts: dict) -> float:
        """The largest of a step, in proportion."""
        return max(abs(a - b) / b for a, b in zip(self.grad_norms, facts["grad_norms"], strict=True))

    def rate_difference(self, facts: dict) -> float:
        """The largest of a step, in proportion to the highest rate."""
        rates = facts["learning_rates"]
        return max(abs(a - b) for a, b in zip(self.learning_rates, rates, strict=True)) / max(rates)

    def weight_difference(self, facts: dict) -> float:
        """The largest of a kind of weight: of its norm or of its sum, in proportion to the norm. Left out are biases of
        queries, keys and values: a key's has no gradient but rounding, which AdamW makes steps of."""
        theirs = facts["weights"]
        assert self.weights.keys() == theirs.keys()
        pairs = [
            (zip(self.weights[kind], theirs[kind], strict=True), theirs[kind][1])
            for kind in theirs
            if "qkv.bias" not in kind
        ]
        return max(abs(a - b) / norm for numbers, norm in pairs for a, b in numbers)


def train_case(name: str, *, ranks, tokens: Path, folder: Path) -> Run:
    """Trains a case in the layout that it has; the arguments of every version must become one recipe."""
    case = CASES[name]
    recipes = [recipe_of(version, name, tokens) for version in VERSIONS if name in of_version(version)]
    assert all(recipe == recipes[0] for recipe in recipes)
    recipe = recipes[0]
    recipe["train"]["run_dir"] = str(folder / "run")
    recipe["monitor"] = {"tensorboard": False}
    if case.resumes_after:
        ended = recipe | {"train": recipe["train"] | {"max_steps": case.resumes_after}}
        ranks(case.world_size, run_training, json.dumps(ended))
    steps = ranks(case.world_size, run_training, json.dumps(recipe))[0]
    losses, norms, rates = map(list, zip(*steps, strict=True))
    return Run(losses, norms, rates, weight_digests(max((folder / "run" / "checkpoints").glob("step_*"))))


def main(names: list[str]) -> None:
    from tests.ranks import RankGroup

    group = RankGroup()
    print("| case | version | steps | loss, nats | gradient norm | learning rate | weights |\n|" + " --- |" * 7)
    with tempfile.TemporaryDirectory() as root:
        write_tokens(Path(root) / "tokens")
        for name in names or CASES:
            run = train_case(name, ranks=group.run, tokens=Path(root) / "tokens", folder=Path(root) / name)
            for version in VERSIONS:
                if name in recorded(version):
                    facts = recorded(version)[name]
                    differences = (run.loss_difference, run.norm_difference, run.rate_difference, run.weight_difference)
                    shown = " | ".join(f"{difference(facts):.0e}" for difference in differences)
                    print(f"| {name} | {version} | {len(run.losses)} | {shown} |", flush=True)
    group.close()


if __name__ == "__main__":
    main(sys.argv[1:])
