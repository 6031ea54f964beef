"""A run hurt at random again and again, beside one that nobody disturbed: the same losses, nothing twice, nothing left.

A small model trains in two processes. At random steps, and sometimes while it starts up, one thing goes wrong: any one
of its processes is killed (launcher, rank, writer of a checkpoint, ...), all of them are, it is asked to stop by each
signal, a process freezes for a moment, its disk is full, or after a stop a file of its newest checkpoint or a record of
the run is damaged. Then the same command is given again, in the other of two layouts by turns. At the end:

- each step's loss is the undisturbed run's, and each step has trained on its own samples, once. With `--one-layout` it
  is the same to the last bit; else it lies within `--tolerance`, since two layouts add numbers up in another order, and
  Adam's eps is large, since else it makes a step of full size of a gradient that is rounding alone;
- every checkpoint that was not damaged here is whole;
- no process of the run is alive.

    python benchmarks/chaos.py [--faults 30] [--seed 1] [--one-layout] [--folder DIR]

What goes wrong when depends on `--seed` alone, but not to the millisecond. The full disk needs a mount of its own, for
which the script must be root; elsewhere it is left out, and that is said. The exit code is 1 if anything is not as
above; then the folder is kept.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from megatron_sky.errors import RunError
from megatron_sky.monitor.metrics import METRICS_FILE, TrainRecord, read_metrics
from megatron_sky.trainer import run_record

GLOBAL_BATCH_SIZE, SEQ_LENGTH, STEPS_PER_FAULT = 8, 64, 20
LAYOUTS = {"two of data parallelism, ZeRO-1": [], "two of tensor parallelism": ["parallel.tp_size=2"]}
MARK = "MEGATRON_SKY_CHAOS"
"""In the environment of every process of the run, wherever it has gone."""

DISK_MEGABYTES = 200

GOES_ON = {0, 1, 69, 75, 86, 130}
"""Exit codes after which docs/resilience.md says: start again; 130: Ctrl-C before the program had begun."""

RECIPE = """
model:
  {{vocab_size: 512, hidden_size: 64, ffn_hidden_size: 128, num_layers: 2, num_attention_heads: 4, seq_length: {seq}}}
precision: {{dtype: fp32}}
data: {{train: [{{name: chaos, path: {folder}/tokens}}]}}
schedule: {{style: constant, lr: 1e-4}}
optimizer: {{adam_eps: 1e-3}}
train: {{run_dir: {run_dir}, tokens: {tokens}, global_batch_size: {batch}, micro_batch_size: 2, num_threads: 1}}
checkpoint: {{interval: 7 steps, keep_last: 4}}
resilience: {{step_timeout_seconds: 60, startup_timeout_seconds: 120}}
"""


@dataclasses.dataclass
class Start:
    """One start of the run: its processes, and what it says."""

    folder: Path
    run_dir: Path
    layout: str
    number: int

    def __post_init__(self):
        self.log = self.folder / f"start_{self.number:03}.log"
        recipe = [self.folder / "recipe.yaml", f"train.run_dir={self.run_dir}", *LAYOUTS[self.layout]]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_sky", "train", *recipe, "--nproc", "2"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def step(self) -> int:
        return last_step(self.run_dir)

    def processes(self) -> list[psutil.Process]:
        """The launcher and all that it started, as long as it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            return [launcher, *launcher.children(recursive=True)]
        return []

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float = 180) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Wrong(f"start {self.number} did not end within {seconds} s, see {self.log}") from None


class Wrong(Exception):
    """What must not be."""


def last_step(run_dir: Path) -> int:
    with contextlib.suppress(RunError):
        records = read_metrics(run_dir).train
        return records[-1].step if records else 0
    return 0


# ---------------------------------------------------------------------------------------------------------- the faults
# Each takes the start that it hurts and the generator of its choices, and says what it did.


def kill_one(start: Start, choose: random.Random) -> str:
    victims = start.processes()
    if not victims:
        return "it had ended"
    victim = choose.choice(victims)
    with contextlib.suppress(psutil.NoSuchProcess):
        place = "the launcher" if victim.pid == start.process.pid else f"one of {len(victims) - 1} below the launcher"
        victim.kill()
        return f"SIGKILL to {place}"
    return "the process had just ended"


def kill_a_writer(start: Start, choose: random.Random) -> str:
    """A helper of a rank: whatever is two floors below the launcher. Waits for one to be there."""
    for _ in range(2000):
        below = [child for process in start.processes()[1:2] for child in children(process)]
        if below:
            with contextlib.suppress(psutil.NoSuchProcess):
                choose.choice(below).kill()
                return "SIGKILL to a helper of rank 0"
        if not start.running():
            break
        time.sleep(0.005)
    return "rank 0 had no helper"


def children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def kill_all(start: Start, choose: random.Random) -> str:
    for process in start.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return "SIGKILL to all"


def ask(start: Start, choose: random.Random) -> str:
    number = choose.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
    times = choose.choice([1, 1, 2])
    for _ in range(times):
        with contextlib.suppress(ProcessLookupError):
            os.kill(start.process.pid, number)
        time.sleep(0.05)
    return f"{number.name} to the launcher" + (", twice" if times == 2 else "")


def freeze(start: Start, choose: random.Random) -> str:
    processes = start.processes()
    if not processes:
        return "it had ended"
    process, seconds = choose.choice(processes), choose.uniform(0.5, 3)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        time.sleep(seconds)
        process.resume()
    return f"a process stood still for {seconds:.1f} s"


def full_disk(start: Start, choose: random.Random) -> str:
    ballast = start.run_dir.parent / "ballast"
    if shutil.disk_usage(ballast.parent).total > 2 * DISK_MEGABYTES << 20:
        raise Wrong(f"{ballast.parent} is not the small disk that was mounted there")
    seconds = choose.uniform(0.2, 3)
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    time.sleep(seconds)
    ballast.unlink()
    return f"its disk was full for {seconds:.1f} s"


def damage(start: Start, choose: random.Random) -> str:
    """Stops it and damages the newest checkpoint, where two older ones are whole, or a record of the run."""
    said = choose.choice([kill_all, ask])(start, choose)
    start.wait()
    checkpoints = whole_checkpoints(start.run_dir)
    records = [path for name in (run_record.FILE, METRICS_FILE) if (path := start.run_dir / name).is_file()]
    files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file()) if len(checkpoints) > 2 else records
    if not files:
        return f"{said}; nothing was there to damage"
    file = choose.choice(files)
    how = tear if file in records else choose.choice([tear, flip, remove])
    if file not in records:
        damaged.add(checkpoints[-1].name)
    how(file, choose)
    return f"{said}; then {how.__name__} {file.relative_to(start.run_dir)}"


layouts = list(LAYOUTS)
"""Those that the starts take by turns."""

damaged: set[str] = set()
"""Names of the checkpoints that `damage` has hurt."""


def whole_checkpoints(run_dir: Path) -> list[Path]:
    folders = sorted((run_dir / "checkpoints").glob("step_*"), key=lambda path: path.name)
    return [path for path in folders if path.is_dir() and "." not in path.name and path.name not in damaged]


def tear(file: Path, choose: random.Random) -> None:
    """The last bytes are gone; of a file of lines at most its last line, as a kill leaves it."""
    size = file.stat().st_size
    last_line = len(file.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]) if file.name == METRICS_FILE else size
    os.truncate(file, size - min(size, choose.randint(1, max(1, last_line))))


def flip(file: Path, choose: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if data:
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    file.write_bytes(data)


def remove(file: Path, choose: random.Random) -> None:
    file.unlink()


FAULTS: list[Callable[[Start, random.Random], str]] = [
    kill_one, kill_one, kill_one, kill_a_writer, kill_all, ask, ask, freeze, full_disk, damage
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- the run


def prepare(folder: Path, faults: int, seed: int) -> None:
    import numpy as np

    from megatron_sky.data.tokens.indexed import token_dtype
    from megatron_sky.data.tokens.writer import IndexedWriter

    tokens = (faults + 2) * STEPS_PER_FAULT * GLOBAL_BATCH_SIZE * SEQ_LENGTH
    generator = np.random.default_rng(seed)
    with IndexedWriter(folder / "tokens", token_dtype(512)) as writer:
        for _ in range(200):
            writer.add_document(np.minimum(generator.zipf(1.3, tokens // 200), 512) - 1)
    text = RECIPE.format(
        seq=SEQ_LENGTH, batch=GLOBAL_BATCH_SIZE, tokens=tokens, folder=folder, run_dir=folder / "undisturbed"
    )
    (folder / "recipe.yaml").write_text(text)


def disturbed(folder: Path, run_dir: Path, faults: list[Callable], choose: random.Random) -> None:
    """Starts the run until it ends by itself, with a fault at a random step of each STEPS_PER_FAULT."""
    start = begin(folder, run_dir, 0)
    for number, fault in enumerate(faults, 1):
        start = running(start)
        wait_for_its_moment(start, number * STEPS_PER_FAULT - choose.randrange(STEPS_PER_FAULT), choose)
        step, said = start.step, fault(start, choose)
        print(f"{number:3} step {step:4}  start {start.number:3}  {said}", flush=True)
    while (code := running(start).wait(600)) != 0:
        if code not in GOES_ON:
            raise Wrong(f"start {start.number} ended with exit code {code}, see {start.log}")
        start = begin(folder, run_dir, start.number)


def wait_for_its_moment(start: Start, step: int, choose: random.Random) -> None:
    """Until `step` is written and a moment longer; one time in five the moment comes while it starts up."""
    if choose.random() < 0.2:
        time.sleep(choose.uniform(0, 6))
        return
    while start.running() and start.step < step:
        time.sleep(0.02)
    time.sleep(choose.uniform(0, 0.3))


def begin(folder: Path, run_dir: Path, number: int) -> Start:
    return Start(folder, run_dir, layouts[number % len(layouts)], number + 1)


def running(start: Start) -> Start:
    """`start`, or the next one where it is about to end or has ended in a way that may be gone on from."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        start.process.wait(3)
    if start.running():
        return start
    code, said = start.process.returncode, start.log.read_text()
    full = "No space left" in said or "GB free" in said
    before_the_program = "Python runtime state: core initialized" in said  # Ctrl-C reached Python itself
    if not (code in GOES_ON or code < 0 or full) or ("Traceback" in said and not before_the_program):
        raise Wrong(f"start {start.number} ended with exit code {code}, see {start.log}:\n{said[-2000:]}")
    return begin(start.folder, start.run_dir, start.number)


# ---------------------------------------------------------------------------------------------------------- the checks


def differences(ours: list[TrainRecord], theirs: list[TrainRecord], tolerance: float) -> Iterator[str]:
    if [record.step for record in ours] != [record.step for record in theirs]:
        yield f"{len(ours)} steps are recorded, {len(theirs)} were undisturbed"
        return
    for one, other in zip(ours, theirs, strict=True):
        if one.consumed_samples != one.step * GLOBAL_BATCH_SIZE:
            yield f"step {one.step}: {one.consumed_samples} samples are consumed, not {one.step * GLOBAL_BATCH_SIZE}"
        if abs(one.lm_loss - other.lm_loss) > tolerance:
            yield f"step {one.step}: loss {one.lm_loss}, undisturbed {other.lm_loss}"


def alive() -> Iterator[psutil.Process]:
    """Processes of the run: the mark in their environment is theirs."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]:
                yield process


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Whether `folder` is a file system of its own while the context lasts."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0 if shutil.which("mount") else False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def check(folder: Path, run_dir: Path, tolerance: float) -> list[str]:
    time.sleep(2)  # what dies with its parent is dead by now
    problems = [f"lives on: {process}" for process in alive()]
    theirs, ours = (read_metrics(path).train for path in (folder / "undisturbed", run_dir))
    problems += list(differences(ours, theirs, tolerance))[:20]
    worst = max((abs(a.lm_loss - b.lm_loss) for a, b in zip(ours, theirs, strict=False)), default=0)
    print(f"{len(ours)} steps, losses differ by at most {worst:.2g} from the undisturbed run's")
    for checkpoint in whole_checkpoints(run_dir):
        command = [sys.executable, "-m", "megatron_sky", "checkpoint", "verify", checkpoint]
        done = subprocess.run(command, capture_output=True, text=True)
        problems += [f"{checkpoint}: {done.stdout}{done.stderr}"] if done.returncode else []
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one-layout", action="store_true", help="the same at each start, for losses equal to the bit")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one, kept where something is wrong")
    parser.add_argument("--tolerance", type=float, default=5e-5, help="of a loss, in nats")
    asked = parser.parse_args()
    if asked.one_layout:
        asked.tolerance = 0
        del layouts[1:]
    os.environ[MARK] = secrets.token_hex(8)
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="megatron_sky_chaos_"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, asked.faults, asked.seed)
    choose = random.Random(asked.seed)
    (disk := folder / "disk").mkdir(exist_ok=True)
    with small_disk(disk) as mounted:
        print(
            f"{asked.faults} faults, seed {asked.seed}, in {folder}" + ("" if mounted else "; no full disk (not root)")
        )
        kinds = [fault for fault in FAULTS if mounted or fault is not full_disk]
        faults = [fault for _ in range(asked.faults // len(kinds) + 1) for fault in choose.sample(kinds, len(kinds))]
        try:
            if (code := Start(folder, folder / "undisturbed", next(iter(LAYOUTS)), 0).wait(1800)) != 0:
                raise Wrong(f"the undisturbed run ended with exit code {code}, see {folder}/start_000.log")
            disturbed(folder, disk / "run", faults[: asked.faults], choose)
            problems = check(folder, disk / "run", asked.tolerance)
        except Wrong as error:
            problems = [str(error)]
        finally:
            for process in alive():
                process.kill()
        if problems and mounted:
            shutil.copytree(disk, folder / "disk_kept", dirs_exist_ok=True, symlinks=True)
    print("\n".join(problems) if problems else "as it should be")
    if not problems and asked.folder is None:
        shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
