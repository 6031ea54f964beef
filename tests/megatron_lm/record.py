"""Records what Megatron-LM's own trainer computes: `python -m tests.megatron_lm.record COPY [CASE ...]`.

COPY is a folder with a copy of Megatron-LM (core_v0.16.1 and core_v0.19.0 are recorded), COPY/pretrain_gpt.py is run
unchanged, on this machine's CPU; the Python that runs this has the megatron-core of that version installed, whose
compiled index builder is lent to the copy. Facts go to recorded/<version>.json, numbers alone, and the names of the
arguments to recorded/arguments.txt. Of cases that are named, those alone are recorded anew.
"""

import argparse
import importlib.util
import json
import multiprocessing
import re
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.megatron_lm import argument_names
from tests.megatron_lm.cases import CASES, ON_A_CPU, RECORDED, Case, arguments, of_version, words, write_tokens
from tests.megatron_lm.digests import weight_digests
from tests.megatron_lm.entry import load, run_ranks


def version_of(copy: Path) -> str:
    """megatron-core's version in a copy of Megatron-LM."""
    text = (copy / "megatron/core/package_info.py").read_text(encoding="utf-8")
    return ".".join(re.search(rf"^{part} = (\d+)", text, re.M)[1] for part in ("MAJOR", "MINOR", "PATCH"))


def lend_helpers(copy: Path) -> None:
    """Puts the installed megatron-core's compiled helpers into the copy, which would compile its own."""
    target = copy / "megatron/core/datasets"
    spec = importlib.util.find_spec("megatron.core")
    for library in (Path(spec.origin).parent / "datasets").glob("helpers_cpp*.so"):
        shutil.copy(library, target)


def record(copy: Path, case: Case, version: str) -> dict:
    """What Megatron-LM computes in a case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder / "tokens")
        saved = folder / "checkpoints"
        given = [*arguments(case, version, folder / "tokens"), *words(ON_A_CPU)]
        given += ["--data-cache-path", str(folder / "cache"), "--save", str(saved), "--ckpt-format", "torch_dist"]
        steps = []
        if case.resumes_after:
            first = [*given, "--exit-interval", str(case.resumes_after)]
            steps = run_ranks(copy / "pretrain_gpt.py", first, world_size=case.world_size, folder=folder)
            given += ["--load", str(saved)]
        steps += run_ranks(copy / "pretrain_gpt.py", given, world_size=case.world_size, folder=folder)
        last = (saved / "latest_checkpointed_iteration.txt").read_text().strip()
        return {
            "losses": [step["loss"] for step in steps],
            "grad_norms": [step["grad_norm"] for step in steps],
            "learning_rates": [step["lr"] for step in steps],
            "weight_decays": sorted({decay for step in steps for decay in step["weight_decays"]}),
            "weights": weight_digests(saved / f"iter_{int(last):07d}"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("copy", type=Path, metavar="COPY")
    parser.add_argument("case", nargs="*", metavar="CASE")
    parser.add_argument("--jobs", type=int, default=1, help="cases that run side by side")
    parser.add_argument("--names-only", action="store_true", help="run no case, list the arguments of the copy")
    given = parser.parse_intermixed_args()
    copy = given.copy.resolve()
    version = version_of(copy)
    cases = of_version(version)
    if strangers := sorted(set(given.case) - set(cases)):
        parser.error(f"no cases of {version}: {', '.join(strangers)}; there are {', '.join(cases)}")
    lend_helpers(copy)
    load(copy)
    argument_names.record(version)
    failures = 0
    if not given.names_only:
        with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("fork")) as pool:
            results = {pool.submit(record, copy, cases[name], version): name for name in given.case or cases}
            for result in as_completed(results):
                try:
                    _keep(version, results[result], result.result())
                except RuntimeError as failure:  # the other cases are recorded all the same
                    failures += 1
                    print(f"{version} {results[result]}: not recorded: {failure}", flush=True)
    raise SystemExit(failures)


def _keep(version: str, name: str, facts: dict) -> None:
    """Writes a case's facts among the others of its version."""
    path = RECORDED / f"{version}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = facts
    path.write_text(_text({name: known[name] for name in CASES if name in known}), encoding="utf-8")
    losses = facts["losses"]
    print(f"{version} {name}: {len(losses)} steps, losses {losses[0]:.6f} to {losses[-1]:.6f}", flush=True)


def _text(facts: dict) -> str:
    """One line for each list of numbers."""
    cases = [
        f" {json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in case.items())
        + "\n }"
        for name, case in facts.items()
    ]
    return "{\n" + ",\n".join(cases) + "\n}\n"


if __name__ == "__main__":
    main()
