"""`corpus build` against the same stages put together by hand from datatrove's own blocks, on the same pages, in turns.

    python benchmarks/corpus_by_hand.py FOLDER [--megabytes 20] [--rounds 3]

The input is HTML in JSONL (field `text`): generated English and Chinese pages, a tenth of them near copies, footers
that recur. Each side runs in a process of its own with one worker; counted are the CPU seconds of all its processes
and the time on the clock. By hand, as a user of datatrove would write it, LocalPipelineExecutors one after the other:

1. JsonlReader, main text, language, GopherRepetitionFilter, GopherQualityFilter, JsonlWriter (zstd)
2. JsonlReader, MinhashDedupSignature; 3. MinhashDedupBuckets; 4. MinhashDedupCluster
5. JsonlReader, MinhashDedupFilter, JsonlWriter; then SentenceDedup by lines (signatures, finding, filter),
   PIIFormatter and JsonlWriter

What is the same: the extractor (ours, in datatrove's sandbox), the function that tells languages, the words that the
Gopher filters and MinHash count (a regular expression, in the place of spaCy and of tokenizers that are downloaded,
which are slower), 12 bands of 11 hashes of 5-grams, xxhash, zstd. Gopher's repetitions are counted for one length of
n-gram, as in our rule; datatrove's own default counts nine. What differs: ours tells exact copies and addresses too,
keeps dropped documents with their rule, an account and qualities by which the best copy stays, masks telephone and
identity numbers, sorts documents into outputs; its distribution filter cuts what is in too many documents, where
SentenceDedup keeps a line's first occurrence. Neither side makes tokens.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDES = ("ours", "by hand")
LANGUAGES = ("zh", "en", "other")
STOP_WORDS = [*("the", "of", "and", "to", "that", "is"), *"的了是在和有我不这"]
MENU = '<nav><ul><li><a href="/">Home</a></li><li><a href="/a">News</a></li><li><a href="/b">About</a></li></ul></nav>'


def write_pages(folder: Path, megabytes: int, files: int = 8) -> None:
    """The pages, of `megabytes` of text together, in some files."""
    from corpus_passes import write_texts

    folder.mkdir(parents=True)
    texts = folder.parent / "texts.jsonl"
    write_texts(texts, megabytes * 10**6)
    lines = texts.read_text(encoding="utf-8").splitlines()
    for number in range(files):
        with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as file:
            for line in lines[number::files]:
                body = "".join(f"<p>{part}</p>" for part in json.loads(line)["text"].split("\n"))
                head = "<!doctype html><html><head><title>t</title></head><body>"
                page = f"{head}{MENU}<main><article>{body}</article></main><footer>Imprint</footer></body></html>"
                file.write(json.dumps({"text": page}, ensure_ascii=False) + "\n")
    texts.unlink()


def run_ours(folder: Path, out: Path) -> None:
    from megatron_sky.corpus.build import build
    from megatron_sky.corpus.recipe import CorpusRecipe

    pages = sorted(map(str, (folder / "pages").glob("*.jsonl")))
    recipe = CorpusRecipe.model_validate(
        {
            "out": str(out),
            "sources": [{"name": "pages", "kind": "jsonl", "paths": pages, "html": True}],
            "read": {"unit_bytes": max(map(os.path.getsize, pages))},
            "language": {"keep": list(LANGUAGES)},
            "recurrence": {"partitions": 4},
            "duplicates": {"partitions": 4},
            "outputs": [{"name": "all"}],
            "execution": {"workers": 1},
        }
    )
    begun = time.process_time()
    build(recipe, "local", lambda line: report(line.split(":")[0], begun))
    report("end", begun)


def report(name: str, begun: float) -> None:
    """CPU seconds of this process so far (a pass's sandbox counts when it has ended), at the begin of a pass."""
    print(f"{name} {time.process_time() - begun:.2f}", flush=True)


def run_by_hand(folder: Path, out: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
        SentenceDedupFilter,
        SentenceDedupSignature,
        SentenceFindDedups,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.dedup.sentence_dedup import SentDedupConfig
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from megatron_sky.corpus.extract import Resiliparse

    words: Any = _words()
    minhash = MinhashConfig(n_grams=5, num_buckets=12, hashes_per_bucket=11)
    lines = SentDedupConfig(n_sentences=1, split_sentences=False, min_doc_words=0, min_num_sentences=0)
    tasks = len(list((folder / "pages").glob("*.jsonl")))
    repetition = GopherRepetitionFilter(top_n_grams=(), dup_n_grams=((10, 0.2),), language=words)
    quality = GopherQualityFilter(min_avg_word_length=1, stop_words=STOP_WORDS, language=words)
    signature = MinhashDedupSignature(f"{out}/sig", minhash, language=words)
    line_signature = SentenceDedupSignature(f"{out}/lines", config=lines, language=words)
    signature._hash_func = line_signature.hash_fc = _xxhash  # datatrove's own gives it a str, which xxhash 4 refuses
    writer = lambda name: JsonlWriter(f"{out}/{name}", "${rank}.jsonl", compression="zstd")  # noqa: E731
    reader = lambda name: JsonlReader(f"{out}/{name}")  # noqa: E731
    pipelines: dict[str, tuple[list, int]] = {
        "filters": (
            [
                JsonlReader(str(folder / "pages")),
                Resiliparse(timeout=20),
                LambdaFilter(_is_wanted),
                *(repetition, quality, writer("filtered")),
            ],
            tasks,
        ),
        "signatures": ([reader("filtered"), signature], tasks),
        "buckets": ([MinhashDedupBuckets(f"{out}/sig", f"{out}/buckets", config=minhash)], 12),
        "clusters": ([MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=minhash)], 1),
        "near copies": ([reader("filtered"), MinhashDedupFilter(f"{out}/remove"), writer("deduplicated")], tasks),
        "lines": ([reader("deduplicated"), line_signature], tasks),
        "find lines": ([SentenceFindDedups(f"{out}/lines", f"{out}/found", config=lines)], 1),
        "write": (
            [
                reader("deduplicated"),
                SentenceDedupFilter(f"{out}/found", config=lines, language=words),
                *(PIIFormatter(), writer("text")),
            ],
            tasks,
        ),
    }
    begun = time.process_time()
    for name, (steps, num_tasks) in pipelines.items():
        report(name, begun)
        LocalPipelineExecutor(steps, tasks=num_tasks, workers=1, logging_dir=f"{out}/logs/{name}").run()
    report("end", begun)


def _xxhash(text: str) -> int:
    import xxhash

    return xxhash.xxh64_intdigest(text.encode())


def _is_wanted(document: Any) -> bool:
    from megatron_sky.corpus.language import language_of_document

    return language_of_document(document.text) in LANGUAGES


def _words() -> Any:
    """A tokenizer for datatrove: words and single Chinese characters."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    from megatron_sky.corpus.grams import tokens_of

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return tokens_of.__wrapped__(text)  # without our cache

        def sent_tokenize(self, text: str) -> list[str]:
            return text.splitlines()

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    return Words()


def measure(folder: Path, side: str, number: int) -> tuple[float, float, dict[str, float]]:
    """CPU seconds of all processes, seconds on the clock, and CPU seconds by pass."""
    out = folder / f"{side.replace(' ', '_')}_{number}"
    command = [sys.executable, __file__, str(folder), "--side", side, "--out", str(out)]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(folder / "stderr", "w"), text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begun
    if process.returncode:
        sys.exit(f"{side} failed: {(folder / 'stderr').read_text()[-3000:]}")
    marks = [line.rsplit(" ", 1) for line in printed.splitlines() if line.count(" ") and line[-1].isdigit()]
    pairs = list(itertools.pairwise(marks))
    by_pass = {name: float(end) - float(start) for (name, start), (_, end) in pairs}
    return usage.ru_utime + usage.ru_stime, wall, by_pass


def num_documents(out: Path) -> int:
    from megatron_sky.data.ingest.compressed import open_compressed

    count = 0
    for path in sorted((out / "text").rglob("*.zst")):
        with open_compressed(path, ".zst") as file:
            count += sum(1 for _ in file)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=20, help="of text within the pages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.absolute()
    if args.side:
        (run_ours if args.side == "ours" else run_by_hand)(folder, args.out)
        return
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    write_pages(folder / "pages", args.megabytes)
    results: dict[str, list] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            result = measure(folder, side, number)
            results[side].append(result)
            out = folder / f"{side.replace(' ', '_')}_{number}"
            print(f"{side:8} {result[0]:8.1f} CPU s {result[1]:8.1f} s, {num_documents(out):,} documents", flush=True)
            shutil.rmtree(out)
    for side, runs in results.items():
        passes = {name: statistics.median(run[2][name] for run in runs) for name in runs[0][2]}
        print(f"{side}: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in passes.items()) + " CPU s")
    for which, what in ((0, "CPU seconds"), (1, "time on the clock")):
        ours, theirs = (statistics.median(run[which] for run in results[side]) for side in SIDES)
        print(f"{what}: {ours:.1f} / {theirs:.1f} = {ours / theirs:.2f}, medians of {args.rounds}")


if __name__ == "__main__":
    main()
