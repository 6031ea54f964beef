"""Records a small run, to be read by later versions: `python -m tests.trainer.record FOLDER`.

FOLDER/recipe.yaml               its paths are relative: it is used from FOLDER
       tokenizer.model
       text.jsonl                the texts of all that follows
       tokens/en.*               both trained on and validated on, which is told
       run/                      two attempts of a Slurm job: to step 3 and to step 5; the checkpoint of step 3
           eval/loss.*           that checkpoint's losses
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

RECORDED = Path(__file__).parent / "recorded"
ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 560
RECIPE = {
    "model": {
        "vocab_size": VOCAB_SIZE,
        "vocab_multiple": 8,
        "hidden_size": 8,
        "ffn_hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "tie_embeddings": True,
        "seq_length": 16,
    },
    "tokenizer": {"path": "tokenizer.model"},
    "data": {"train": [{"name": "en", "path": "tokens/en", "weight": 1.0}]},
    "precision": {"dtype": "fp32"},
    "schedule": {"lr": 1e-2, "min_lr": 1e-3},
    "train": {"run_dir": "run", "tokens": 5 * 4 * 16, "global_batch_size": 4},
    "validation": {"sets": [{"name": "en", "path": "tokens/en"}], "max_sequences": 2, "at_start": False},
    "checkpoint": {"interval": "3 steps", "async_save": False},
    "monitor": {"tensorboard": False},
}


def sky(folder: Path, *words: object, **variables: str) -> None:
    """`megatron-sky WORDS` in `folder`."""
    program = (
        f"import sys; sys.argv = {['megatron-sky', *map(str, words)]!r}\n"
        "from megatron_sky.__main__ import main; sys.exit(main())"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | variables, check=True
    )


def record(folder: Path) -> None:
    from megatron_sky.data.ingest.tokenize import tokenize_jsonl
    from megatron_sky.data.synthetic import write_corpus
    from megatron_sky.tokenizer.train import train_tokenizer

    folder.mkdir(parents=True)
    files = write_corpus(folder / "corpus", train_bytes=60_000, heldout_bytes=3_000)
    texts = [json.loads(line)["text"] for path in files["train"].values() for line in path.open(encoding="utf-8")]
    lines = files["train"]["en_web"].read_text(encoding="utf-8").splitlines()[:6]
    shutil.rmtree(folder / "corpus")
    os.chdir(folder)
    Path("text.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tokenizer = train_tokenizer(texts, Path("tokenizer.model"), VOCAB_SIZE)
    Path("tokens").mkdir()
    tokenize_jsonl([Path("text.jsonl")], Path("tokens/en"), tokenizer)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    for attempt, (limit, code) in enumerate(((3, 75), (5, 0))):
        job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(attempt)}
        sky(folder, "slurm", "attempt", "begin", "recipe.yaml", **job)
        sky(folder, "train", "recipe.yaml", f"train.max_steps={limit}", **job)
        sky(folder, "slurm", "attempt", "end", f"run/slurm/job_7_attempt_{attempt}", "--exit-code", code)
    shutil.rmtree("run/checkpoints/step_0000005")
    sky(folder, "eval", "loss", "run", "--data", "en=text.jsonl", "--max-documents", 2, "--out", "run/eval")
    for left in ("run/logs", "run/index_cache", "run/eval/loss.png", "run/eval/loss.md"):
        shutil.rmtree(left) if Path(left).is_dir() else Path(left).unlink(missing_ok=True)
    Path("run/.lock").unlink()


if __name__ == "__main__":
    record(Path(sys.argv[1]).resolve())
