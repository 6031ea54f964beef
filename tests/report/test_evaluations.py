"""Result files of `megatron-sky eval` in the report: which are found, what the tables hold, what is told."""

import json
import os
from dataclasses import replace

import pytest

from megatron_sky.evaluate.leakage import judge, published, verdict_test, verdict_train
from megatron_sky.evaluate.metrics import DocumentLoss, figures_of
from megatron_sky.evaluate.results import (
    DomainRecord,
    LeakageResults,
    LossResults,
    ModelLeakage,
    ModelLosses,
    ModelRecord,
    Setting,
    write_json,
)
from megatron_sky.evaluate.tasks import TaskScore, write_tasks
from megatron_sky.report.content import Notes, Table
from megatron_sky.report.evaluations import evaluation_sections, load_evaluations

SETTING = Setting(context=4096, max_characters=1365, stride=None, max_documents=None, begin="auto")
DOMAINS = ("tech", "movie")


def losses(*names, per_token=2.0, setting=SETTING):
    def documents(domain):
        return [DocumentLoss(domain, n, "0", 100, 120, 50, 40, 50 * per_token) for n in range(3)]

    by_domain = {domain: figures_of(documents(domain)) for domain in DOMAINS}
    average = figures_of([each for domain in DOMAINS for each in documents(domain)])
    models = [ModelLosses(ModelRecord(name, warnings=("told",)), by_domain, average) for name in names]
    records = tuple(DomainRecord(name, (f"{name}.jsonl",), 3, 0, 1) for name in DOMAINS)
    return LossResults(setting, records, tuple(models))


def leakage(**models):
    judged = []
    for name, values in models.items():
        found = (published(*values),)
        judged.append(ModelLeakage(ModelRecord(name), found, judge(found, verdict_test), judge(found, verdict_train)))
    return LeakageResults(0.05, 0.95, None, (), tuple(judged))


def put(results, folder, age=0):
    path = write_json(results, folder)
    os.utime(path, (2e9 - age, 2e9 - age))
    return path


def tables(found):
    return [block for section in evaluation_sections(found) for block in section.blocks if isinstance(block, Table)]


def test_perplexity_as_table_6(tmp_path):
    put(losses("a", "b"), tmp_path / "eval")
    found = load_evaluations([tmp_path])
    perplexity, normalised, bits = tables(found)
    assert perplexity.headings == ["model", "tech", "movie", "average"] and perplexity.caption == "Perplexity"
    assert perplexity.rows[0] == ["a", "12.18", "12.18", "12.18"]  # exp(2.5)
    assert normalised.rows[1] == ["b", "2.5000", "2.5000", "2.5000"] and "Bits" in bits.caption
    section = evaluation_sections(found)[0]
    (told,) = [block.notes for block in section.blocks if isinstance(block, Notes)]
    assert (
        told[1] == "Documents: tech 3, movie 3."
        and "a: told" in told
        and told[-1] == f"From {tmp_path.name}/eval/loss.json."
    )


def test_leakage_as_table_8(tmp_path):
    put(leakage(Skywork=(1.01, 0.97, 1.00), Aquila=(0.78, 0.39, 1.29)), tmp_path / "eval" / "gsm8k")
    (table,) = tables(load_evaluations([tmp_path]))
    assert table.rows[0][:6] == ["Skywork", "1.01", "0.97", "1.00", "+0.01", "+0.04"]
    assert table.rows[1][6] == "test data leaked"


def test_benchmarks(tmp_path):
    scores = [TaskScore(model, 5, 100, "arc", "acc", value, 0.01, 99) for model, value in (("a", 0.5), ("b", 0.25))]
    write_tasks(scores, tmp_path / "eval")
    (table,) = tables(load_evaluations([tmp_path]))
    assert table.headings == ["task", "metric", "a", "b"]
    assert table.rows == [["arc", "acc", "0.5000 ± 0.0100", "0.2500 ± 0.0100"]]


def test_results_taken_alike_become_one_table_the_newest_first(tmp_path):
    put(losses("old", "both", per_token=1.0), tmp_path / "eval" / "first", age=100)
    put(losses("new", "both"), tmp_path / "eval" / "second")
    perplexity, *_ = tables(load_evaluations([tmp_path]))
    assert [(row[0], row[1]) for row in perplexity.rows] == [("new", "12.18"), ("both", "12.18"), ("old", "3.49")]


def test_models_that_failed_are_told_and_stay_in_one_table(tmp_path):
    put(replace(losses("old"), failed=("x: the loss is nan",)), tmp_path / "eval/first", age=100)
    put(replace(losses("new"), failed=("y: the loss is nan",)), tmp_path / "eval/second")
    found = load_evaluations([tmp_path])
    assert [row[0] for row in tables(found)[0].rows] == ["new", "old"]
    (told,) = [block.notes for block in evaluation_sections(found)[0].blocks if isinstance(block, Notes)]
    assert told[2:4] == ["Failed: y: the loss is nan.", "Failed: x: the loss is nan."]


def test_models_of_one_name_are_told_apart_by_their_files(tmp_path):
    for run in ("a", "b"):
        results = losses("step_0000010")
        (model,) = results.models
        model = replace(model, model=replace(model.model, path=f"/{run}/step_0000010"))
        put(replace(results, models=(model,)), tmp_path / run / "eval", age=ord(run))
    perplexity, *_ = tables(load_evaluations([tmp_path / "a", tmp_path / "b"]))
    assert [row[0] for row in perplexity.rows] == ["step_0000010", "step_0000010 (b/eval/loss.json)"]


def test_results_taken_otherwise_stay_apart(tmp_path):
    put(losses("a"), tmp_path / "eval" / "1", age=2)
    put(losses("b", setting=Setting(2048, None, None, None, "auto")), tmp_path / "eval" / "2")
    assert [each.rows[0][0] for each in tables(load_evaluations([tmp_path]))] == ["b"] * 3 + ["a"] * 3


def test_files_that_are_given_come_after_and_count_once(tmp_path):
    own = put(losses("own"), tmp_path / "run" / "eval", age=100)
    other = put(losses("other"), tmp_path / "elsewhere")
    found = load_evaluations([tmp_path / "run"], [own, other])
    assert [row[0] for row in tables(found)[0].rows] == ["own", "other"]
    assert len(found.loss[0][1]) == 2
    assert len(tables(load_evaluations([], [tmp_path / "elsewhere"]))) == 3  # a folder of results


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "can't be read"),
        ("\xff", "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("[]", "no result of"),
        ('{"kind": "harness"}', "no result of"),
        ('{"kind": ["loss"]}', "no result of"),
        ('{"kind": "loss", "format_version": 99}', "format_version 1"),
        ('{"kind": "loss", "format_version": 1}', "no whole loss file"),
        ('{"kind": "leakage", "format_version": 1, "models": 3}', "no whole leakage file"),
        ('{"kind": "loss", "format_version": 1, "models": "m"}', "models = 'm': should be a valid tuple"),
        ('{"kind": "tasks", "format_version": 2, "scores": []}', "format_version = 2: should be 1"),
        ('{"kind": "tasks", "format_version": 1, "scores": [3]}', "can't be read as task scores"),
        ('{"kind": "tasks", "format_version": 1, "scores": [{"value": "x", "stderr": 1}]}', "can't be read as task"),
    ],
)
def test_a_file_that_is_no_result_is_told(tmp_path, text, told):
    put(losses("a"), tmp_path / "eval")
    (tmp_path / "eval" / "x.json").write_bytes(text.encode("latin-1"))
    found = load_evaluations([tmp_path])
    assert len(found.loss) == 1 and len(found.notes) == 1
    assert "x.json" in found.notes[0] and told in found.notes[0]


def test_a_model_without_a_domain_is_told(tmp_path):
    path = put(losses("a"), tmp_path / "eval")
    given = json.loads(path.read_text())
    del given["models"][0]["domains"]["movie"]
    path.write_text(json.dumps(given))
    (note,) = load_evaluations([tmp_path]).notes
    assert "a has no movie" in note


def test_a_missing_file_is_told(tmp_path):
    (note,) = load_evaluations([tmp_path], [tmp_path / "nothing.json"]).notes
    assert "nothing.json: can't be read" in note
