"""All benchmarks in order on an idle machine: one page with the machine, what each took, and what each printed.

    python benchmarks/run_all.py --out figures.md [--only hf_trainer,data_loader] [--scratch DIR]
        [--texts TEXT.jsonl --tokenizer FILE.model] [--conversations FILE.jsonl] [--megatron-lm COPY]

Each runs as a process of its own, after the machine's load has fallen below `--idle`. Memory is the peak of the sum of
proportional set sizes (PSS) over the benchmark and all its processes, looked at twice a second: a page that several
share counts once, where summed resident sizes would count it for each. A benchmark that fails is named with its last
lines, and the exit code is 1; the others still run. The page is written anew after each, so that an interrupted
series keeps what it has.

What it does not show: `chaos.py`, which measures nothing; and what each benchmark says of itself.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import psutil

HERE = Path(__file__).parent
PACKAGES = ("megatron-sky", "torch", "megatron-core", "transformers", "numpy")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
INTERVAL = 0.5
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d |\[rank\d+\]:|.*Warning: |  warnings\.warn|.*\d+%\||/|\{|\s*$")
"""The program's own log, warnings of packages, progress bars, what a verb says of its file: no figures."""


@dataclass(frozen=True)
class Case:
    """A benchmark with its options, and what its figures do not show."""

    script: str
    options: tuple[str, ...]
    hides: str

    @property
    def name(self) -> str:
        """Without the folders of files, which tell nothing elsewhere."""
        return " ".join((self.script, *(Path(word).name for word in self.options)))


@dataclass(frozen=True)
class Outcome:
    case: Case
    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    load: float
    text: str


def cases(args: argparse.Namespace, scratch: Path) -> Iterator[Case]:
    """Those that this machine and the command line allow, in order."""
    one_step = ("--micro-batch-size", "2", "--global-batch-size", "2")
    saves = "saves, validation, other shapes than this one"
    yield Case("loop_overhead", ("--rounds", "8", "--steps-per-block", "1"), saves)
    yield Case("hf_trainer", ("--rounds", "6", *one_step), saves)
    yield Case("hf_trainer", ("--rounds", "4", "--nproc", "2", "--micro-batch-size", "1", *one_step[2:]), saves)
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_features()):
        yield Case("hf_trainer", ("--rounds", "6", "--dtype", "bf16", *one_step), saves)
    for shape in ("small", "large"):
        yield Case("eval_speed", ("--shape", shape), "a GPU; a disk that is slow to read")
        yield Case("generate_speed", ("--shape", shape), "the time to load; sampling; a GPU")
    yield Case("data_loader", (), "a cold page cache, many processes")
    yield Case("data_first_batch", ("ours",), "megatron-core's builders, which `theirs` measures in hours and 69 GB")
    yield Case("data_verify", (), "many files side by side")
    if args.texts and args.tokenizer:
        peer = ("--megatron-lm", args.megatron_lm) if args.megatron_lm else ()
        yield Case("data_tokenize", (args.texts, args.tokenizer, *peer), "compressed input; other tokenizers")
    yield Case("checkpoint_save", ("--folder", str(scratch / "saves")), "a shared file system, many ranks")
    yield Case("convert_13b", (str(scratch / "convert"), "--layers", str(args.layers)), "a shared file system")
    yield Case("corpus_by_hand", (str(scratch / "by_hand"),), "many workers; real pages; a cluster")
    yield Case("corpus_passes", (str(scratch / "passes"),), "real pages; many workers")
    yield Case("corpus_quality", (str(scratch / "quality"),), "real dirt; models larger than the quickstart's")
    if args.conversations and importlib.util.find_spec("trl"):
        yield Case("finetune_speed", (args.conversations,), "a GPU; ours on padded batches")
    yield Case("plan_calibrate", (), "a GPU's rates, more than one machine, a step beside a save")
    if args.megatron_lm:
        yield Case("megatron_lm", (args.megatron_lm,), "more than one process; a GPU")
    if shutil.which("nvidia-smi"):
        yield Case("gpu_training", (), "more than one GPU")


def left_out(args: argparse.Namespace) -> list[str]:
    """What the command line or the machine does not allow, and why."""
    reasons = {
        "data_tokenize: needs --texts and --tokenizer": not (args.texts and args.tokenizer),
        "finetune_speed: needs --conversations, and trl": not (args.conversations and importlib.util.find_spec("trl")),
        "megatron_lm: needs --megatron-lm, a copy of Megatron-LM": not args.megatron_lm,
        "gpu_training: needs a GPU": shutil.which("nvidia-smi") is None,
    }
    return [reason for reason, applies in reasons.items() if applies]


def run(case: Case, load: float) -> Outcome:
    """Runs it to its end, its output shown as it comes."""
    words = [sys.executable, str(HERE / f"{case.script}.py"), *case.options]
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = psutil.Popen(words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                peak = max(peak, pss(process))
                time.sleep(INTERVAL)
        except BaseException:  # what was started goes with it
            for one in (*process.children(recursive=True), process):
                one.kill()
            raise
        output.seek(0)
        text = output.read()
    code = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    return Outcome(case, code, seconds, usage.ru_utime + usage.ru_stime, peak, load, text.strip())


def pss(process: psutil.Process) -> int:
    """Bytes of it and its descendants, each shared page divided by the number of those that share it."""
    total = 0
    try:
        alive = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in alive:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


def wait_until_idle(limit: float, patience: float) -> float:
    """The load average of the last minute, once it is below `limit` or `patience` seconds have passed."""
    deadline = time.monotonic() + patience
    while (load := os.getloadavg()[0]) > limit and time.monotonic() < deadline:
        time.sleep(5)
    return load


def cpu_features() -> list[str]:
    """Of `CPU_FEATURES` those that the kernel tells."""
    info = Path("/proc/cpuinfo")
    told = set(info.read_text(encoding="utf-8").split()) if info.is_file() else set()
    return [name for name in CPU_FEATURES if name in told]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> list[str]:
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return [
        f"- {date.today()}: {len(os.sched_getaffinity(0))} cores of {processor()} "
        f"({', '.join(cpu_features()) or 'no vector units told'}), {memory:.0f} GiB",
        f"- {platform.platform()}, Python {platform.python_version()}; {versions}",
    ]


def page(outcomes: Sequence[Outcome], omitted: Sequence[str], waiting: Sequence[Case]) -> str:
    """All of it as Markdown."""
    lines = ["# Benchmarks on one machine", "", *machine(), *(f"- left out: {reason}" for reason in omitted)]
    lines += [f"- not reached: `{case.name}`" for case in waiting]
    lines += ["", "| benchmark | seconds | CPU seconds | peak PSS, GiB | load before | does not show |"]
    lines += ["|---|---|---|---|---|---|"]
    for one in outcomes:
        failed = "" if one.code == 0 else f" **failed, exit code {one.code}**"
        lines.append(
            f"| `{one.case.name}`{failed} | {one.seconds:.0f} | {one.cpu_seconds:.0f} | {one.peak_bytes / 2**30:.2f} "
            f"| {one.load:.1f} | {one.case.hides} |"
        )
    for one in outcomes:
        text = one.text.splitlines()
        shown = text[-20:] if one.code else [line for line in text if not LOG_LINE.match(line)]
        lines += ["", f"## {one.case.name}", "", "```", *shown, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page that is written")
    parser.add_argument("--only", help="these scripts alone, separated by commas")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk that is measured; default: the system's")
    parser.add_argument("--layers", type=int, default=8, help="of the model that is converted; 52 need 60 GB of disk")
    parser.add_argument("--texts", help="a JSONL file to tokenize")
    parser.add_argument("--tokenizer", help="the tokenizer for it")
    parser.add_argument("--conversations", help="a JSONL file of conversations to fine-tune on")
    parser.add_argument("--megatron-lm", help="a copy of Megatron-LM")
    parser.add_argument("--idle", type=float, default=0.5, help="the load average at which a benchmark begins")
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for that, then it begins anyway")
    args = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="benchmarks_") as name:
        chosen, omitted = list(cases(args, Path(name))), left_out(args)
        if args.only is not None:
            wanted = set(args.only.split(","))
            if unknown := wanted - {case.script for case in chosen}:
                known = ", ".join(sorted({case.script for case in chosen}))
                parser.error(f"--only {', '.join(sorted(unknown))}: can't be run here; there are {known}")
            chosen, omitted = [case for case in chosen if case.script in wanted], []
        for number, case in enumerate(chosen, 1):
            print(f"{number}/{len(chosen)} {case.name}", flush=True)
            outcomes.append(run(case, wait_until_idle(args.idle, args.patience)))
            args.out.write_text(page(outcomes, omitted, chosen[number:]), encoding="utf-8")
            print(outcomes[-1].text, flush=True)
    return 1 if any(one.code for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
