"""One small corpus, built from the example's crawl, looked at by all tests; and built again in other ways."""

import importlib.util
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import zstandard
from datatrove.pipeline.base import PipelineStep

from megatron_sky.cli.main import app
from megatron_sky.config import load_config
from megatron_sky.corpus.build import build, num_done, status
from megatron_sky.corpus.classifier import Facts, LanguageModel, save_classifier
from megatron_sky.corpus.disk import disk_needs
from megatron_sky.corpus.executors import run_local
from megatron_sky.corpus.ledger import prove, read_ledger
from megatron_sky.corpus.passes import build_passes, stages_of
from megatron_sky.corpus.plan import continue_plan
from megatron_sky.corpus.recipe import load_corpus_recipe
from megatron_sky.corpus.show import funnel, read_summary, sample_documents
from megatron_sky.corpus.skips import add_skips, read_failures
from megatron_sky.corpus.stage import Stage
from megatron_sky.errors import ConfigError, RunError

EXAMPLE = Path(__file__).parents[2] / "examples" / "corpus_in_miniature"
PASSES = "read copies paragraphs recurrence clean buckets clusters finish publish tokenize summary"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of a small crawl, and of a tokenizer."""
    from megatron_sky.tokenizer.train import train_model, training_lines, write_model

    folder = tmp_path_factory.mktemp("corpus")
    spec = importlib.util.spec_from_file_location("make_crawl", EXAMPLE / "make_crawl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NUM_PAGES = 30
    module.main(folder / "crawl")
    text = (folder / "crawl" / "wiki.jsonl").read_text(encoding="utf-8")
    write_model(train_model(list(training_lines(text)), 600), folder / "tokenizer.model")
    weights = np.zeros(1 << 8, dtype="<f4")
    save_classifier(folder / "quality", {name: LanguageModel(1, 1.0, Facts(), weights) for name in ("zh", "en")})
    return folder


@pytest.fixture(scope="module")
def load(home):
    """`load("key=value")`: the example's recipe on that crawl, in this process alone."""

    def recipe(*overrides):
        paths = [
            f"sources.crawl.paths=[{home}/crawl/*.warc.gz]",
            f"sources.wiki.paths=[{home}/crawl/wiki.jsonl]",
            f"decontamination.benchmarks.trains.paths=[{home}/crawl/benchmark.jsonl]",
            f"tokens.tokenizer={home}/tokenizer.model",
            f"quality.classifier={home}/quality",
            "quality.min_score={zh: 0.5, en: 0.5}",
        ]
        return load_corpus_recipe(
            [EXAMPLE / "corpus.yaml", *paths, f"out={home}/built", "execution.workers=1", *overrides]
        )

    return recipe


@pytest.fixture(scope="module")
def built(load):
    lines = []
    folder = build(load(), "local", lines.append)
    assert [line.split(":")[0] for line in lines] == ["disk", *PASSES.split()]
    return folder


def texts(folder):
    """The bytes of each output's lines, in order; and of its tokens."""
    outputs = {}
    for path in sorted(folder.glob("*/*/*.jsonl.zst")):
        if path.parent.parent.name in ("text", "validation"):
            name = f"{path.parent.parent.name}/{path.parent.name}"
            outputs[name] = outputs.get(name, b"") + zstandard.open(path, "rb").read()
    return outputs | {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*tokens/*.bin")}


def test_every_rule_of_the_example_is_met_and_the_account_adds_up(built, load):
    ledger = read_ledger(built, stages_of(load()))
    prove(ledger)
    dropped = {(stage, rule) for stage, one in ledger.items() for account in one.values() for rule in account.dropped}
    assert dropped >= {
        ("read", "broken_record"),
        ("read", "not_json"),
        ("read", "no_text"),
        ("language", "language_other"),
        ("heuristics", "mojibake"),
        ("heuristics", "repeated_lines"),
        ("exact_duplicates", "exact"),
        ("near_duplicates", "near"),
        ("decontamination", "benchmark_trains"),
    }
    scores = ledger["quality"]["wiki"].histograms["score_zh"]
    assert sum(scores.values()) == ledger["quality"]["wiki"].given.documents > 30
    crawl = {stage: accounts["crawl"] for stage, accounts in ledger.items()}
    assert crawl["read"].notes["mislabelled_encoding"] >= 3 and crawl["recurrence"].notes["cut_paragraphs"] > 40
    assert crawl["privacy"].notes["masked_email"] >= 2 and crawl["privacy"].notes["masked_phone"] >= 2


def test_texts_are_clean_and_traced_to_their_origin(built):
    page = zstandard.open(next((built / "text" / "web_zh").glob("*.zst")), "rt", encoding="utf-8").read()
    assert '"encoding":"gb18030"' in page and '"place":' in page and ".warc.gz" in page
    assert "本站" not in page and "首页" not in page and "13812345678" not in page


def test_the_mixture_is_a_layer_of_a_training_recipe(built):
    quickstart = sorted((EXAMPLE.parent / "quickstart").glob("*.yaml"))
    config = load_config([*quickstart, built / "mixture.yaml"])
    weights = {source.name: source.weight for source in config.data.train}
    tokens = {name: one["tokens"] for name, one in read_summary(built)["outputs"]["text"].items()}
    assert weights["encyclopedia_zh"] == 3 * tokens["encyclopedia_zh"] and weights["web_en"] == tokens["web_en"] > 0
    assert {one.name for one in config.validation.sets} <= {"encyclopedia_zh", "web_zh", "web_en"}


def test_a_second_run_does_nothing_and_another_recipe_is_refused(built, load):
    lines = []
    build(load("execution.workers=2", "read.unit_bytes=5M"), "local", lines.append)
    assert lines == []
    assert all(one.num_done == one.num_tasks for one in status(load()))
    with pytest.raises(ConfigError, match=r"recurrence\.max_documents = 9: was 5"):
        build(load("recurrence.max_documents=9"), "local", lines.append)


def test_it_goes_on_after_an_interruption(built, load, home):
    again = home / "again"
    shutil.copytree(built, again)
    for name in PASSES.split()[4:]:
        shutil.rmtree(again / "logs" / name)
    for name in ("text", "validation", "tokens", "validation_tokens", "work/cleaned"):
        shutil.rmtree(again / name, ignore_errors=True)
    lines = []
    build(load(f"out={again}"), "local", lines.append)
    assert [line.split(":")[0] for line in lines] == ["disk", *PASSES.split()[4:]]
    assert texts(again) == texts(built)


def test_each_pass_writes_no_more_than_is_said_before(built, load, home):
    folder = home / "read_only"
    shutil.copytree(built / "ledger", folder / "ledger")
    shutil.copytree(built / "logs" / "read", folder / "logs" / "read")
    plan = continue_plan(built / "plan.json", load())
    passes = build_passes(load(), plan, folder)
    needs = {need.name: need.bytes for need in disk_needs(load(), plan, passes, folder)}
    assert list(needs) == PASSES.split()[1:]
    places = {"paragraphs": "work/paragraphs", "clean": "work/[cs]*", "finish": "text", "tokenize": "tokens"}
    for name, pattern in places.items():
        written = [file for place in built.glob(pattern) for file in place.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in written if file.suffix not in (".json", ".npy"))
        assert 0 < size <= needs[name] < 12 * size, name


@pytest.fixture
def broken(built, home):
    """`broken("w")`: the corpus before the pass `clean`, in a folder of that name, with no input for its task 0."""

    def make(folder):
        copy = home / folder
        shutil.copytree(built, copy)
        for later in PASSES.split()[4:]:
            shutil.rmtree(copy / "logs" / later)
        for place in ("text", "validation", "tokens", "validation_tokens", "work/clusters"):
            shutil.rmtree(copy / place, ignore_errors=True)
        (copy / "work" / "documents" / "00000.jsonl.zst").write_bytes(b"no zstd")
        return copy

    return make


def test_a_task_that_fails_is_named_and_skipped_by_choice(load, broken):
    folder = broken("skipped")
    with pytest.raises(
        RunError,
        match=r"1 of 2 tasks failed:\n  clean: task 0 failed 2 times \(.*zst.*\); its input: .*crawl_0\.warc\.gz and 4 "
        r"more\n  fix: see .*--skip-task clean:0",
    ):
        build(load(f"out={folder}"), "local", print)
    clean = next(one for one in status(load(f"out={folder}")) if one.name == "clean")
    assert clean.num_done == 1 and clean.remarks[0].startswith("task 0 failed 2 times (")
    build(load(f"out={folder}"), "local", print, skip=["clean:0"])
    ledger = read_ledger(folder, stages_of(load()))
    prove(ledger)
    lost = ledger["exact_duplicates"]["crawl"]
    assert lost.dropped == {"skipped_task": lost.given} and lost.given == ledger["quality"]["crawl"].kept
    assert ledger["exact_duplicates"]["wiki"].kept.documents > 30
    clean = next(one for one in status(load(f"out={folder}")) if one.name == "clean")
    assert clean.remarks[0].startswith("task 0 is skipped: ") and len(clean.remarks) == 1
    assert "skipped: task 0 of clean, " in funnel(folder) and "| clean | 0 | " in (folder / "card.md").read_text()
    assert not (folder / "text" / "web_zh").exists() and (folder / "text" / "encyclopedia_zh").exists()


def test_a_skipped_input_is_one_document_a_file(load, home):
    folder = home / "without"
    build(load(f"out={folder}", "execution.retries=0"), "local", print, skip=["read:0"])
    ledger = read_ledger(folder, stages_of(load()))
    prove(ledger)
    assert ledger["read"]["crawl"].dropped["skipped_task"].documents == 5
    assert ledger["read"]["crawl"].kept.documents == 0 < ledger["read"]["wiki"].kept.documents


def test_what_a_skipped_task_loses_is_dropped_by_the_next_stage(load, home):
    folder = home / "skips"
    folder.mkdir()
    add_skips(folder, ["clean:1"], [["a"], ["b"]])
    plan = continue_plan(folder / "plan.json", load())

    def firsts(*overrides):
        passes = {one.name: one for one in build_passes(load(*overrides), plan, folder)}
        return [[one for one in passes[name].steps if isinstance(one, Stage)][:1] for name in ("clean", "finish")]

    [[exact], [near]] = firsts()
    assert (exact.stage, exact.before, exact.skipped) == ("exact_duplicates", "quality", {1})
    assert (near.stage, near.before, near.skipped) == ("near_duplicates", "recurrence", frozenset())
    [none, [near]] = firsts("duplicates.exact=false", "duplicates.url=false", "recurrence.enabled=false")
    assert none == [] and (near.before, near.skipped) == ("quality", {1})


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_failed_task(load, home, monkeypatch):
    """One process for a task; what the others of the pass do is done."""
    out = home / "killed"
    recipe = load(f"out={out}", "execution.workers=2", "execution.retries=1")
    plan = continue_plan(out / "plan.json", recipe)
    read = build_passes(recipe, plan, out)[0]
    read.steps.insert(0, KillsTask(0))
    run_local(read, out, recipe.execution)
    assert num_done(out, "read") == 1
    [failure] = read_failures(out, "read").values()
    assert failure.attempts == 2 and "killed by SIGKILL (out of memory?" in failure.error
    read.steps.pop(0)
    run_local(read, out, recipe.execution)
    assert num_done(out, "read") == 2 and not read_failures(out, "read")


class KillsTask(PipelineStep):
    type, name = "test", "kills"

    def __init__(self, task):
        super().__init__()
        self.task = task

    def run(self, data, rank=0, world_size=1):
        if rank == self.task:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_result_does_not_depend_on_tasks_and_workers(built, load, home):
    other = home / "other"
    build(load(f"out={other}", "read.unit_bytes=9000", "execution.workers=2"), "local", print)
    assert num_done(other, "read") > 2 * num_done(built, "read")
    assert texts(other) == texts(built)
    one, two = read_summary(built), read_summary(other)
    assert one["stages"] == two["stages"] and one["clusters"] == two["clusters"] != {}


def test_dropped_and_kept_documents_are_shown(built, load):
    [spam] = sample_documents(load(), rule="mojibake")
    assert spam.title.startswith("heuristics: mojibake; crawl, ") and "锟斤拷" in spam.text
    assert len(sample_documents(load(), count=4)) == 4
    with pytest.raises(RunError, match="no documents of stage any, rule nonsense"):
        sample_documents(load(), rule="nonsense")


def test_the_verbs(built, load, home, capsys):
    from megatron_sky.config import dump_config

    path = home / "recipe.yaml"
    path.write_text(dump_config(load()), encoding="utf-8")
    for verb in (["build"], ["status"], ["report"], ["inspect", "--rule", "mojibake"]):
        app(["corpus", verb[0], str(path), *verb[1:]], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "near_duplicates" in shown and "tokens" in shown and "锟斤拷" in shown
    page = (built / "report.html").read_text(encoding="utf-8")
    assert "Data card" in page and "benchmark_trains" in page and "max_documents" in page
    assert all(title in page for title in ("Length, characters", "质量分（中文）", "近似重复（按簇大小）"))
    assert "锟斤拷" in page and "heuristics: mojibake; crawl" in page
