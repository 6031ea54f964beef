"""CPU seconds, memory and disk of each pass of `corpus build`, at two sizes of text, and what follows for a larger one.

    python benchmarks/corpus_passes.py FOLDER [--megabytes 20 80] [--target-gigabytes 10]

The texts are generated: English and Chinese by word frequency, a tenth of the documents near copies of others, footers
that recur. Each pass runs in a process of its own, its tasks one after the other, so its peak is that of one worker.
Memory at the target size is a straight line through the two measured ones. The last column: all files of the corpus
when the pass is done, in bytes for a byte of text.
"""

import argparse
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SENTENCES = 6  # of a paragraph, on average
WORDS = 12  # of a sentence
BLOCK = 20_000_000  # bytes
ENGLISH, CHINESE = "abcdefghijklmnopqrstuvwxyz", "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
FOOTER_MARK = "\0"
FOOTER = "All articles of this site were prepared by the editors; number {} of the desk. 本站文章由编辑部整理发布。"


def write_texts(path: Path, size: int) -> None:
    """About `size` bytes of JSONL. Drawing is slow: after BLOCK bytes the texts come again in other letters."""
    texts = list(draw_texts(min(size, BLOCK)))
    letters, done, draw = ENGLISH + CHINESE, 0, np.random.default_rng(2)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(-(-size // BLOCK)):
            others = "".join("".join(draw.permutation(list(part))) for part in (ENGLISH, CHINESE))
            cipher = str.maketrans(letters, others if number else letters)
            for text in texts:
                body, footer = text.split(FOOTER_MARK)
                line = json.dumps({"text": body.translate(cipher) + footer}, ensure_ascii=False) + "\n"
                file.write(line)
                done += len(line.encode())
                if done >= size:
                    return


def draw_texts(size: int) -> Iterator[str]:
    """About `size` bytes of texts, FOOTER_MARK before what all have in common."""
    draw = np.random.default_rng(1)
    english = ["".join(draw.choice(list(ENGLISH), draw.integers(2, 10))) for _ in range(40_000)]
    english[:9] = ["the", "of", "and", "to", "that", "is", "was", "for", "with"]
    chinese = list(draw.permutation(list(CHINESE)))
    chinese[:9] = list("的了是在和有我不这")
    earlier: list[str] = []
    done = 0
    while done < size:
        if earlier and draw.random() < 0.1:
            text = earlier[draw.integers(len(earlier))] + f"\n{draw.integers(10**9)}"
        else:
            is_english = draw.random() < 0.5
            vocabulary, joint = (english, " ") if is_english else (chinese, "")
            count = int(draw.integers(2, 12))
            words = np.minimum(draw.zipf(1.3, count * SENTENCES * WORDS), len(vocabulary)) - 1
            text = "\n".join(joint.join(vocabulary[word] for word in part) + "." for part in np.split(words, count))
            text += f"{FOOTER_MARK}\n{FOOTER.format(draw.integers(20))}"
            earlier = [*earlier[-2000:], text]
        yield text
        done += len(text.encode())


def measure(folder: Path, megabytes: int) -> dict[str, tuple[float, float, int]]:
    """CPU seconds, peak MiB and bytes on the disk afterwards, by pass."""
    os.environ["TQDM_DISABLE"] = "1"  # read when it is imported
    from megatron_sky.corpus.build import _passes, _prepare
    from megatron_sky.corpus.executors import run_local
    from megatron_sky.corpus.ledger import num_done
    from megatron_sky.corpus.recipe import CorpusRecipe

    folder = folder / str(megabytes)
    folder.mkdir(parents=True)
    in_a_process(lambda: write_texts(folder / "texts.jsonl", megabytes * 10**6))
    recipe = CorpusRecipe.model_validate(
        {
            "out": str(folder / "out"),
            "sources": [{"name": "texts", "kind": "jsonl", "paths": [str(folder / "texts.jsonl")]}],
            "read": {"unit_bytes": 2_000_000},
            "heuristics": {"enabled": False},
            "language": {"keep": ["zh", "en", "other"]},
            "recurrence": {"partitions": 4},
            "duplicates": {"partitions": 4},
            "outputs": [{"name": "all"}],
            "execution": {"workers": 1, "keep_dropped": False},
        }
    )
    out = folder / "out"
    out.mkdir()
    figures = {}
    for one in _passes(recipe, _prepare(recipe, out), out):
        usage = in_a_process(lambda one=one: run_local(one, out, recipe.execution))
        if num_done(out, one.name) < one.num_tasks:
            sys.exit(f"{one.name} failed: {out}/failures")
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        figures[one.name] = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, size
    return figures


def in_a_process(work: Callable[[], None]) -> resource.struct_rusage:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # the process ends here, whatever it was
            traceback.print_exc()
        os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit("a process that measured has failed")
    return usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs=2, default=(20, 80))
    parser.add_argument("--target-gigabytes", type=float, default=10)
    args = parser.parse_args()
    small, large = sorted(args.megabytes)
    first, second = (measure(args.folder.absolute(), size) for size in (small, large))
    target = args.target_gigabytes * 1000
    print(f"{'pass':12}{'CPU s':>9}{'MB/CPU s':>10}{f'MiB, {small} MB':>14}{f'MiB, {large} MB':>14}", end="")
    print(f"{f'MiB, {target:,.0f} MB':>17}{'disk, of the text':>19}")
    for name, (seconds, memory, disk) in second.items():
        slope = max(0.0, memory - first[name][1]) / (large - small)
        numbers = f"{seconds:9.1f}{large / max(seconds, 1e-3):10.1f}{first[name][1]:14.0f}{memory:14.0f}"
        print(f"{name:12}{numbers}{memory + slope * (target - large):17.0f}{disk / large / 1e6:19.2f}")


if __name__ == "__main__":
    main()
