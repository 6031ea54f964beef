"""Tokenizing speed against Megatron-LM's preprocess_data.py and gigatoken's own encode_files, same text and model.

    python benchmarks/data_tokenize.py TEXT.jsonl TOKENIZER.model --megatron-lm CHECKOUT [--workers 2]

`CHECKOUT` is a work tree of Megatron-LM; without it that peer is left out. Each runs `--rounds` times in turn and the
best of each counts, by wall clock; MB per second of processor time is given too, which a busy machine changes less.
"""

import argparse
import filecmp
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def run(command: list[str], env: dict[str, str] | None = None) -> tuple[float, float, float]:
    """Wall seconds, processor seconds of all its processes, and the peak memory in MiB of the largest of them."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, check=True, env=os.environ | (env or {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used, after.ru_maxrss / 1024


def commands(args: argparse.Namespace, folder: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What is run, by name."""
    flags = ["--input", args.text, "--append-eod", "--workers", str(args.workers)]
    flags += ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", args.tokenizer]
    ours = [sys.executable, str(HERE / "tools" / "preprocess_data.py"), *flags, "--output-prefix", f"{folder}/ours"]
    code = (
        "import sys, gigatoken; t = gigatoken.Tokenizer.from_sentencepiece(sys.argv[2]); "
        "t.encode_files(gigatoken.JsonlFileSource([sys.argv[1]], field='text'))"
    )
    found = {
        "ours": (ours, {}),
        "gigatoken": (
            [sys.executable, "-c", code, args.text, args.tokenizer],
            {"RAYON_NUM_THREADS": str(args.workers)},
        ),
    }
    if args.megatron_lm:
        script = str(Path(args.megatron_lm) / "tools" / "preprocess_data.py")
        theirs = [args.peer_python, script, *flags, "--output-prefix", f"{folder}/theirs"]
        found["Megatron-LM"] = (theirs, {"PYTHONPATH": args.megatron_lm + args.peer_path})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("tokenizer")
    parser.add_argument("--megatron-lm")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter for Megatron-LM")
    parser.add_argument("--peer-path", default="", help="added to Megatron-LM's PYTHONPATH, as :/some/folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    size = os.path.getsize(args.text) / 1e6
    best: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, (command, env) in commands(args, folder).items():
                wall, used, _ = run(command, env)
                before = best.get(name, (wall, used))
                best[name] = (min(wall, before[0]), min(used, before[1]))
        if args.megatron_lm:
            same = all(
                filecmp.cmp(f"{folder}/ours_text_document.{end}", f"{folder}/theirs_text_document.{end}", shallow=False)
                for end in ("bin", "idx")
            )
            print(f"output identical to Megatron-LM's: {same}")
    for name, (wall, used) in best.items():
        print(
            f"{name}: {size / wall:.1f} MB/s, {size / used:.1f} MB per processor second; "
            f"ours is {wall / best['ours'][0]:.2f} times as fast by the clock, {used / best['ours'][1]:.2f} by its time"
        )


if __name__ == "__main__":
    main()
