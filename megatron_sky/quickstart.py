"""`megatron-sky quickstart`: the whole road on a small scale, with nothing given.

A synthetic bilingual corpus, a tokenizer, token files; training at TP2 in two processes; the same run continued at
PP2 in new ones; every domain's loss before and after; a line of text in each language; a report. Started again after
an interruption, it goes on where it stopped.

    <out>/corpus/{train,validation,test}/<domain>.jsonl
          tokenizer.model
          tokens/{train,validation}/<domain>.{bin,idx,meta.json}
          run/                                                     the run folder
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_sky.checkpoint import store
from megatron_sky.config import Config, load_config
from megatron_sky.distributed import device
from megatron_sky.distributed.launch import hide_failed_lookups, run_local
from megatron_sky.errors import RunError
from megatron_sky.files import write_json
from megatron_sky.log import get_logger, screen, setup_logging

VOCAB_SIZE = 1024
PROCESSES = 2
TOKENIZED = ("train", "validation")
PROMPTS = (("English", "The reader"), ("中文", "清晨，"))

log = get_logger(__name__)


def run(out: Path, *, seed: int) -> None:
    """Everything, into `out`; at most three minutes on two cores.

    Raises RunError where `out` holds another seed's run: nothing is written then.
    """
    start = time.monotonic()
    setup_logging(rank=0, world_size=1, run_dir=None)
    hide_failed_lookups()
    if device.leave_gpus_out_below(PROCESSES):
        log.warning("%d processes need a GPU each, and there are fewer: training on the CPU", PROCESSES)
    os.environ["QUICKSTART"] = str(out)
    recipe = [str(recipes() / "quickstart" / name) for name in ("model.yaml", "train.yaml")]
    seeds = [f"data.seed={seed}", f"train.seed={seed}"]
    config = load_config(recipe, seeds)
    run_dir = Path(config.train.run_dir)
    _check_seed(run_dir, seed)
    make_data(out, seed=seed)
    total_steps = config.train.tokens // (config.train.global_batch_size * config.model.seq_length)
    _train([*recipe, *seeds], run_dir, until=total_steps // 2, parallel="tp_size=2")
    _train([*recipe, *seeds], run_dir, until=total_steps, parallel="pp_size=2")
    _show_losses(run_dir)
    _show_samples(run_dir, seed)
    _show_end(run_dir, config, time.monotonic() - start)


def _check_seed(run_dir: Path, seed: int) -> None:
    """A run goes on with the corpus it began with."""
    resolved = run_dir / "config.yaml"
    began_with = load_config([resolved], keep_unset=True).data.seed if resolved.exists() else seed
    if began_with != seed:
        raise RunError(
            f"--seed {seed}: {run_dir} holds a run of --seed {began_with}, which goes on with its own corpus\n"
            f"  fix: give another folder with --out, or --seed {began_with}"
        )


def recipes() -> Path:
    """The folder of the recipes: `examples/` of a checkout, or its copy in an installed package."""
    checkout = Path(__file__).parents[1] / "examples"
    return checkout if (checkout / "quickstart").is_dir() else Path(__file__).parent / "recipes"


def make_data(out: Path, *, seed: int) -> None:
    """The corpus, its tokenizer and its token files; the same files for the same seed."""
    from megatron_sky.data.ingest.tokenize import tokenize_jsonl
    from megatron_sky.data.synthetic import write_corpus
    from megatron_sky.tokenizer.train import train_tokenizer

    try:
        files = write_corpus(out / "corpus", seed=seed)
        log.info("corpus of %d domains in %s", len(files["train"]), out / "corpus")
        tokenizer = train_tokenizer(_texts(files["train"].values()), out / "tokenizer.model", VOCAB_SIZE)
        log.info("tokenizer of %d tokens in %s", tokenizer.vocab_size, out / "tokenizer.model")
        for split in TOKENIZED:
            (out / "tokens" / split).mkdir(parents=True, exist_ok=True)
            folder = out / "tokens" / split
            metas = [tokenize_jsonl([path], folder / name, tokenizer) for name, path in files[split].items()]
            log.info("%s: %s tokens", split, f"{sum(meta.num_tokens for meta in metas):,}")
    except OSError as error:
        raise RunError(f"--out {out}: can't be written: {error}\n  fix: give a folder you may write to") from error


def _texts(paths) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


def _train(arguments: list[str], run_dir: Path, *, until: int, parallel: str) -> None:
    """Trains the run in two processes up to step `until`, unless it is there already."""
    done = [step for step, _ in store.list_checkpoints(run_dir)]
    if done and max(done) >= until:
        log.info("step %d is already reached in %s", until, run_dir)
        return
    log.info("training to step %d with parallel.%s, in two new processes", until, parallel)
    run_local(["train", *arguments, f"parallel.{parallel}", f"train.max_steps={until}"], PROCESSES)


def _show_losses(run_dir: Path) -> None:
    from megatron_sky.monitor.console import before_after_table
    from megatron_sky.monitor.metrics import read_metrics

    records = read_metrics(run_dir).validation
    first, last = records[0].step, records[-1].step
    before = {record.set: record.lm_loss for record in records if record.step == first}
    after = {record.set: record.lm_loss for record in records if record.step == last}
    screen().print(before_after_table(before, after))


def _show_samples(run_dir: Path, seed: int) -> None:
    """A line from a prompt in each language, from the last checkpoint (made at PP2) in this one process."""
    from megatron_sky.generation.run import generate_texts
    from megatron_sky.generation.sampling import Sampling

    prompts = [prompt for _, prompt in PROMPTS]
    texts = generate_texts(run_dir, prompts, Sampling(max_new_tokens=40, temperature=0.5, seed=seed))
    samples = [
        {"language": language, "prompt": prompt, "text": text.partition("\n")[0]}
        for (language, prompt), text in zip(PROMPTS, texts, strict=True)
    ]
    write_json(run_dir / "samples.json", samples)
    for sample in samples:
        log.info("%s: %s", sample["language"], sample["text"])


def _show_end(run_dir: Path, config: Config, seconds: float) -> None:
    from megatron_sky.report import build_report

    page = build_report(run_dir)
    log.info("report: %s", page)
    log.info("checkpoints: %s", run_dir / "checkpoints")
    log.info("done in %.0f s: %s tokens", seconds, f"{config.train.tokens:,}")
