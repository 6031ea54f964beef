"""Shared fixtures: a small tokenized corpus, and one group of gloo processes that runs many-rank checks.

Everything runs on a CPU. `ranks` hands a function to N processes that stay alive for the whole session, since
starting them (importing torch and megatron-core) costs more than most checks.
"""

import os
import sys

# Before torch is loaded, and for all processes that tests start: OpenMP's threads wait asleep. Threads that spin for
# their next piece of work take the cores from the other processes, and the whole suite takes twice as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.ranks import RankGroup

hypothesis.settings.register_profile(
    "shared_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared_machine")

VOCAB_SIZE = 700
SEQ_LENGTH = 32


LONGEST = (
    "slurm/test_training.py",
    "test_paper_in_miniature.py",
    "faults/test_faults.py",
    "trainer/test_fp8_training.py",
    "trainer/test_parity.py",
)
"""Files that take minutes, begun first so that the processes that share the files out end together. The first mostly
waits for Slurm's clocks."""


GB_PER_WORKER = 4
"""Of eight ranks, or a model of transformers beside ours."""


def pytest_xdist_auto_num_workers(config) -> int:
    """How many files run side by side: one a core, at least two and at most eight, and one more that waits for Slurm,
    as far as there is memory."""
    import shutil

    import psutil

    from megatron_sky.distributed.device import available_cores

    cores, room = available_cores(), psutil.virtual_memory().total // (GB_PER_WORKER * 10**9)
    waits = shutil.which("slurmctld") is not None
    return max(2, min(min(cores, 8) + waits, room))


REAL_RUNS = (
    "faults/",
    "planner/rehearsal/test_command.py",
    "planner/rehearsal/test_examples.py",
    "planner/rehearsal/test_process.py",
    "planner/rehearsal/test_run.py",
    "security/test_listeners.py",
    "trainer/test_changed_keys.py",
    "trainer/test_parity.py",
)
"""Where every test starts a training or more, or a rehearsal: seconds each. All are slow."""

IN_EVERY_ROW = (
    "faults/test_faults.py",
    "planner/rehearsal/test_command.py",
    "planner/rehearsal/test_run.py",
    "trainer/test_parity.py",
)
"""Those of them that each set of versions shall pass."""


def pytest_collection_modifyitems(items: list) -> None:
    for item in items:
        place = place_of(item)
        if place.startswith(REAL_RUNS) and item.get_closest_marker("slow") is None:
            item.add_marker("slow")
            if place in IN_EVERY_ROW:
                item.add_marker("every_row")
    items.sort(key=lambda item: LONGEST.index(place_of(item)) if place_of(item) in LONGEST else len(LONGEST))


def place_of(item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable]:
    """`ranks(world_size, function, *args)`: the function's result on every rank, in rank order."""
    group = RankGroup()
    yield group.run
    group.close()


@pytest.fixture(scope="session")
def never_a_rank() -> Iterator[Callable]:
    """A worker for `run_hurt` alone: one that has been a rank holds threads, and what it forks may wait for them."""
    group = RankGroup()
    yield group.run
    group.close()


@pytest.fixture(autouse=True)
def megatron_core_comes_after_the_device() -> Iterator[None]:
    """Names the test that imports megatron-core into this process before `device.setup`: later ones could not train."""
    yield
    if "megatron.core" in sys.modules:
        from megatron_sky.distributed import device

        assert device.is_ready(), "this test imported megatron.core before device.setup()"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder with tokenizer.model and tokens/{train,validation}/{en_web,zh_web}.{bin,idx,meta.json}."""
    import json

    from megatron_sky.data.ingest.tokenize import tokenize_jsonl
    from megatron_sky.data.synthetic import write_corpus
    from megatron_sky.tokenizer.train import train_tokenizer

    folder = tmp_path_factory.mktemp("corpus")
    files = write_corpus(folder / "text", train_bytes=300_000, heldout_bytes=20_000)
    texts = [json.loads(line)["text"] for path in files["train"].values() for line in path.open(encoding="utf-8")]
    tokenizer = train_tokenizer(texts, folder / "tokenizer.model", VOCAB_SIZE)
    for split in ("train", "validation"):
        (folder / "tokens" / split).mkdir(parents=True)
        for domain in ("en_web", "zh_web"):
            tokenize_jsonl([files[split][domain]], folder / "tokens" / split / domain, tokenizer)
    return folder


@pytest.fixture
def recipe(corpus, tmp_path) -> Callable:
    """`recipe("key=value", ...)`: a tiny Config on the corpus, with its run folder in this test's own folder."""
    import yaml

    from megatron_sky.config import load_config

    base = {
        "model": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "ffn_hidden_size": 64,
            "num_layers": 4,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "seq_length": SEQ_LENGTH,
        },
        "tokenizer": {"path": str(corpus / "tokenizer.model")},
        "data": {
            "train": [
                {"name": "en_web", "path": str(corpus / "tokens/train/en_web"), "weight": 0.7},
                {"name": "zh_web", "path": str(corpus / "tokens/train/zh_web"), "weight": 0.3},
            ]
        },
        "precision": {"dtype": "fp32"},
        "schedule": {"lr": 1e-2, "min_lr": 1e-3, "warmup_tokens": 2 * 8 * SEQ_LENGTH},
        "train": {
            "run_dir": str(tmp_path / "run"),
            "tokens": 40 * 8 * SEQ_LENGTH,
            "global_batch_size": 8,
            "micro_batch_size": 1,
        },
        "validation": {
            "sets": [{"name": "en_web", "path": str(corpus / "tokens/validation/en_web")}],
            "max_sequences": 6,
            "at_start": False,
        },
        "monitor": {"tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(base))
    return lambda *overrides: load_config([path], overrides)


@pytest.fixture
def sky(monkeypatch, capsys):
    """`sky("train", ...)`: (exit code, standard output, standard error) of the command, run in this process."""

    from megatron_sky.cli import main as cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["megatron-sky", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
