"""lm-eval's harness on native and exported checkpoints, against its own Hugging Face model; all offline."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_sky.distributed.context import close_context
from megatron_sky.errors import ConfigError, DataError, RunError, SkyError
from megatron_sky.evaluate.tasks import TaskScore, evaluate_tasks, read_tasks, tasks_markdown, write_tasks

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[2] / "examples/tasks"
TASKS = ["sums_choice", "sums_text", "sums_answer"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The example tasks with 6 samples, named by their whole path."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = (EXAMPLES / "sums.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    (folder / "sums.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in EXAMPLES.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("examples/tasks/sums.jsonl", str(folder / "sums.jsonl"))
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def in_a_rank(info, checkpoints: list[str], folder: str) -> list[TaskScore]:
    return evaluate_tasks(checkpoints, TASKS, include_path=Path(folder), info=info)


def refused(info, checkpoints: list[str], folder: str, out: str) -> str:
    """What an evaluation that ends by an error tells."""
    try:
        evaluate_tasks(checkpoints, TASKS, include_path=Path(folder), out=Path(out), info=info)
    except SkyError as error:
        close_context()
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was refused")


def by_lm_eval(info, checkpoint: str, folder: str) -> dict:
    """The scores that the harness's own model gives, documents beginning after the end-of-document token."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=checkpoint, device="cpu", dtype="float32", batch_size=3, prefix_token_id=2)
    manager = TaskManager(include_path=folder, include_defaults=False)
    found = simple_evaluate(model=model, tasks=TASKS, task_manager=manager, bootstrap_iters=0)
    texts = [sample["resps"][0][0] for sample in found["samples"]["sums_answer"]]
    return {"results": found["results"], "texts": texts}


def texts_in_a_rank(info, checkpoint: str, prompts: list[str], settings: dict) -> list[str]:
    """What generate_until makes of the prompts."""
    from lm_eval.api.instance import Instance

    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.evaluate.harness import HarnessModel
    from megatron_sky.evaluate.models import open_models
    from megatron_sky.generation.run import engine_of
    from megatron_sky.inference.hf_model import HfModel

    (opened,) = open_models([checkpoint])
    with open_context(ParallelConfig(distributed_optimizer=False), info) as context:
        engine = engine_of(opened, context.device)
        model = HarnessModel(
            HfModel(engine.model, context),
            opened.coder,
            context=opened.context,
            batch_tokens=200,
            gather=context.gather_objects,
            engine=engine,
        )
        requests = [Instance("generate_until", {}, (prompt, settings), number) for number, prompt in enumerate(prompts)]
        return model.generate_until(requests)


@pytest.fixture(scope="session")
def scores(ranks, native, hf, folder):
    found = ranks(1, in_a_rank, [f"native={native('tp2')}", f"exported={hf('tp2')}"], str(folder))[0]
    return {(each.model, each.task, each.metric): each for each in found}


def test_both_kinds_of_checkpoint_score_the_same(scores):
    keys = [key[1:] for key in scores if key[0] == "native"]
    assert ("sums_choice", "acc") in keys and ("sums_text", "bits_per_byte") in keys
    assert ("sums_answer", "exact_match,last-number") in keys
    for key in keys:
        one, other = scores["native", *key], scores["exported", *key]
        assert one.value == pytest.approx(other.value, rel=1e-5)
        assert one.samples == 6


def test_the_harness_scores_the_same_with_its_own_model(scores, hf, folder, ranks, native):
    theirs = ranks(1, by_lm_eval, str(hf("tp2")), str(folder))[0]
    results = theirs["results"]
    assert scores["native", "sums_choice", "acc"].value == results["sums_choice"]["acc,none"]
    for metric in ("bits_per_byte", "word_perplexity"):
        expected = results["sums_text"][f"{metric},none"]
        assert scores["native", "sums_text", metric].value == pytest.approx(expected, rel=1e-4)
    lines = (folder / "sums.jsonl").read_text(encoding="utf-8").splitlines()
    import json

    prompts = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    settings = {"until": ["\n"], "max_gen_toks": 24, "do_sample": False}
    assert ranks(1, texts_in_a_rank, str(native("tp2")), prompts, settings)[0] == theirs["texts"]


@pytest.mark.slow
def test_two_processes_share_the_work(scores, native, folder, ranks):
    one, other = ranks(2, in_a_rank, [f"native={native('tp2')}"], str(folder))
    assert one == other
    for each in one:
        assert each.value == pytest.approx(scores["native", each.task, each.metric].value, rel=1e-5)


def test_generation_ends_where_it_is_told(native, ranks):
    prompts = ["The reader", "Question: Ada has", "The"]
    whole = ranks(1, texts_in_a_rank, str(native("tp2")), prompts, {"max_gen_toks": 12})[0]
    stop = whole[0][3:5]
    cut = ranks(1, texts_in_a_rank, str(native("tp2")), prompts, {"until": [stop], "max_gen_toks": 12})[0]
    assert cut[0] == whole[0].partition(stop)[0] and len(cut[0]) <= 3
    sampled = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    again = [ranks(1, texts_in_a_rank, str(native("tp2")), prompts, sampled)[0] for _ in range(2)]
    assert again[0] == again[1] != whole


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(lambda each: each.fill_(float("nan")), "not finite"), (lambda each: each[1:].clone(), "not those of the model")],
    ids=["not finite", "not whole"],
)
def test_what_was_scored_before_a_bad_model_is_kept(spoil, words, hf, ranks, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(hf("tp2"), tmp_path / "bad")
    tensors = load_file(tmp_path / "bad/model.safetensors")
    tensors["model.norm.weight"] = spoil(tensors["model.norm.weight"])
    save_file(tensors, tmp_path / "bad/model.safetensors", metadata={"format": "pt"})
    given = [f"good={hf('tp2')}", str(tmp_path / "bad")]
    told = ranks(1, refused, given, str(folder), str(tmp_path / "out"))[0]
    assert told.startswith("CheckpointError: ") and str(tmp_path / "bad") in told and words in told
    assert {each.model for each in read_tasks(tmp_path / "out")} == {"good"}


@pytest.mark.slow
def test_what_can_not_be_asked_is_said(native, ranks, folder, tmp_path):
    with pytest.raises(ConfigError, match="knows no such task"):
        evaluate_tasks([str(native("tp2"))], ["sums_choice", "sums_choices"], include_path=folder)
    with pytest.raises(ConfigError, match="--tasks: names none"):
        evaluate_tasks([str(native("tp2"))], [], include_path=folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        evaluate_tasks([str(native("tp2"))], ["sums_choice"], include_path=folder, out=tmp_path / "file/out")
    with pytest.raises(ConfigError, match="--include-path"):
        evaluate_tasks([str(native("tp2"))], ["sums_choice"], include_path=tmp_path / "none")
    with pytest.raises(AssertionError, match=r"generation_kwargs: not known here: watermark=1"):
        ranks(1, texts_in_a_rank, str(native("tp2")), ["a"], {"watermark": 1})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("task: sums_choice", "task: [sums_choice"), ("dataset_path: json", "dataset_path: 3"),
        ("output_type: multiple_choice", "output_type: \x1b"), ("test_split: test", "test_split: {a: b}"),
        ("sums.jsonl", "nowhere.jsonl"), ("metric: acc", "metric: [acc]"),
    ],
)  # fmt: skip
def test_a_task_of_another_shape_is_said(old, new, folder, tmp_path):
    from megatron_sky.evaluate.tasks import _failures_told, _load_tasks, _task_manager

    text = (folder / "sums_choice.yaml").read_text()
    assert old in text
    (tmp_path / "sums_choice.yaml").write_text(text.replace(old, new))
    with pytest.raises(SkyError) as told:
        manager = _task_manager(["sums_choice"], tmp_path)
        with _failures_told(["sums_choice"]):
            _load_tasks(manager, ["sums_choice"], None)
    assert "sums_choice" in str(told.value) and "fix:" in str(told.value)


def test_the_table_and_the_file(tmp_path):
    some = [
        TaskScore("a", 10, 1000, "t", "acc", 0.5, 0.1, 20),
        TaskScore("b", None, None, "t", "acc", 0.25, None, 20),
        TaskScore("b", None, None, "u", "acc", 1.0, None, 20),
    ]
    write_tasks(some, tmp_path)
    words = tasks_markdown(some)
    assert words == (tmp_path / "tasks.md").read_text(encoding="utf-8")
    assert "0.5000 ± 0.1000" in words and "0.2500" in words
    assert words.splitlines()[3].split("|")[3].strip() == "-"
    assert read_tasks(tmp_path) == some
    write_tasks([replace(some[0], value=math.inf, stderr=-math.inf)], tmp_path)
    assert read_tasks(tmp_path)[0].value == math.inf and "Infinity" not in (tmp_path / "tasks.json").read_text()
    (tmp_path / "tasks.json").write_text('{"kind": "loss"}')
    with pytest.raises(DataError, match="task scores"):
        read_tasks(tmp_path)
