"""A step of megatron_sky against a step of Megatron-LM's own `pretrain_gpt.py`, on this machine's CPU.

Both get the same arguments (ours through `from-args --same-order`), so they train the same weights on the same samples,
and their losses are shown beside the times: they must be equal. COPY is a folder with a copy of Megatron-LM, whose
script is run unchanged, as `tests/megatron_lm/record.py` does. Each side is one process with as many threads; they take
turns, a block of steps each, so both meet the same noise and neither pays for the other's start.

Megatron-LM does not run on a CPU as it comes; what lets it (`tests/megatron_lm/entry.py`) also chooses the library of
matrix products, which is no part of it: by default its side multiplies as torch does by itself, with `--lend-products`
as ours does.

megatron_sky runs as `megatron-sky train` does, with its log line, metrics.jsonl and TensorBoard at every step;
Megatron-LM with its log line at every step. The clock is around whole blocks of the loop, data and log included.

    python benchmarks/megatron_lm.py COPY [--shape tiny|small] [--threads 1] [--rounds 8]
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import Side, told
from turns import Team, Turns, compare_teams, train_in_turns

ROOT = Path(__file__).parents[1]
SHAPES = {
    "tiny": {"num-layers": 4, "hidden-size": 64, "ffn-hidden-size": 176, "seq-length": 128},
    "small": {"num-layers": 4, "hidden-size": 256, "ffn-hidden-size": 704, "seq-length": 256},
}


@dataclass(frozen=True)
class Setting:
    """One comparison; what `Turns` asks of it too."""

    copy: Path
    folder: Path
    shape: str
    threads: int
    rounds: int
    steps_per_block: int
    lend_products: bool = False
    warmup_steps: int = 3

    @property
    def flags(self) -> dict:
        """Megatron-LM's arguments; more steps than will run."""
        from tests.megatron_lm.cases import BASE, BATCH, VOCAB_SIZE

        steps = self.warmup_steps + self.rounds * self.steps_per_block + 10
        shape = SHAPES[self.shape]
        given = {"max-position-embeddings": shape["seq-length"], "train-iters": steps, "global-batch-size": BATCH}
        return BASE | shape | given | {"vocab-size": VOCAB_SIZE, "data-path": str(self.folder / "tokens/web")}


def ours(pipe, setting: Setting) -> None:
    """megatron_sky's side. Its losses are in metrics.jsonl."""
    _enter(setting)
    from megatron_sky.config import load_config, strict_yaml
    from megatron_sky.migrate.recipe import translate
    from tests.megatron_lm.cases import words
    from tests.megatron_lm.record import version_of

    done = translate(words(setting.flags), same_order=True, megatron=version_of(setting.copy))
    done.recipe["train"] |= {"run_dir": str(setting.folder / "run"), "num_threads": setting.threads}
    path = setting.folder / "recipe.yaml"
    path.write_text(strict_yaml.dump(done.recipe), encoding="utf-8")
    train_in_turns(load_config([path]), Turns(pipe, setting))


def theirs(pipe, setting: Setting) -> None:
    """Megatron-LM's side."""
    _enter(setting)
    from tests.megatron_lm import entry
    from tests.megatron_lm.cases import ON_A_CPU, words

    entry.load(setting.copy)
    import torch

    torch.set_num_threads(setting.threads)
    if not setting.lend_products:
        torch.set_float32_matmul_precision("highest")
    turns = Turns(pipe, setting)

    class InTurns(entry.Watch):
        stepping = False

        def train_step(self, *given, **named):
            if self.stepping:
                turns.after_step(self.facts[-1]["loss"])
            self.stepping = True
            turns.before_step()
            return super().train_step(*given, **named)

    given = [*words(setting.flags), *words(ON_A_CPU), "--data-cache-path", str(setting.folder / "cache")]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(entry.free_port())
    entry.run_script(setting.copy / "pretrain_gpt.py", given, InTurns())


def _enter(setting: Setting) -> None:
    """What this process prints goes to a file, and torch gets its threads."""
    output = os.open(setting.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    sys.path.insert(0, str(ROOT))


def compare(setting: Setting) -> tuple[Side, Side, list[list[float]]]:
    """Both sides in turns: their times, and each side's loss at every step."""
    from megatron_sky.monitor.metrics import read_metrics

    tokens = setting.steps_per_block * setting.flags["global-batch-size"] * SHAPES[setting.shape]["seq-length"]
    sides = [Side("megatron_sky", tokens), Side("Megatron-LM", tokens)]
    teams = [Team(work, [(setting,)]) for work in (ours, theirs)]
    try:
        _, their_losses = compare_teams(teams, sides, setting.rounds)
    except (EOFError, ConnectionError):
        raise SystemExit(f"a side has ended\n{(setting.folder / 'log.txt').read_text()[-3000:]}") from None
    return *sides, [[record.lm_loss for record in read_metrics(setting.folder / "run").train], their_losses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("copy", type=Path, metavar="COPY")
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each side that are timed")
    parser.add_argument("--steps-per-block", type=int, default=5)
    parser.add_argument("--lend-products", action="store_true", help="Megatron-LM multiplies by the library we choose")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.megatron_lm.cases import write_tokens
    from tests.megatron_lm.record import lend_helpers

    lend_helpers(given.copy.resolve())
    with tempfile.TemporaryDirectory(prefix="megatron_sky_bench_") as folder:
        setting = Setting(**vars(given) | {"copy": given.copy.resolve(), "folder": Path(folder)})
        write_tokens(Path(folder) / "tokens")
        our_side, their_side, losses = compare(setting)
    print(f"{setting.shape}, fp32, one process of {setting.threads} thread(s) each")
    print(told(our_side, their_side))
    steps, apart = min(map(len, losses)), max(abs(a - b) for a, b in zip(*losses, strict=False))
    print(f"losses of {steps} steps: at most {apart:.0e} apart, {losses[0][0]:.4f} to {losses[0][-1]:.4f}")


if __name__ == "__main__":
    main()
