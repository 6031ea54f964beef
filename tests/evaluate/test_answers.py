"""Answers of a model to held-out conversations: counted to the letter, kept beside each other, read again."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from megatron_sky.errors import DataError
from megatron_sky.evaluate import answers
from megatron_sky.evaluate.answers import answers_markdown, evaluate_answers, read_answers
from megatron_sky.generation import run as generation
from megatron_sky.generation.engine import STOP, Answer
from megatron_sky.generation.run import Opened
from megatron_sky.tokenizer.chat_template import find_template
from tests.generation.models import engine


@pytest.fixture
def models(monkeypatch):
    """Two models by name, which say what `says` has for the number of the question."""
    opened = Opened(SimpleNamespace(path="folder", name="small"), engine(context=40), find_template("skywork"))
    checkpoints = [SimpleNamespace(name=name, path=name, step=3, consumed_tokens=9) for name in ("before", "after")]
    says = {"before": ["no"] * 3, "after": [" yes\n", "no", "one"]}
    asked = []
    monkeypatch.setattr(answers, "open_models", lambda given: checkpoints)
    monkeypatch.setattr(generation, "open_engine", lambda path, **_: asked.append(path) or opened)
    told = lambda engine, requests, *_: enumerate(Answer(text, 2, STOP) for text in says[asked[-1]])  # noqa: E731
    monkeypatch.setattr(generation, "answer_all", told)


def conversations(path, *pairs):
    lines = [json.dumps({"instruction": question, "output": answer}) for question, answer in pairs]
    path.write_text("\n".join(lines), encoding="utf-8")
    return [str(path)]


def test_exact_answers_are_counted(models, tmp_path):
    files = conversations(tmp_path / "in.jsonl", ("a", "yes"), ("b", "yes"), ("c", "one "))
    results = evaluate_answers(["x", "y"], files, out=tmp_path / "out")
    assert [(score.model, score.exact) for score in results.scores] == [("before", 0), ("after", 2)]
    assert [sample.answers for sample in results.samples] == [["no", "yes"], ["no", "no"], ["no", "one"]]
    assert read_answers(tmp_path / "out") == results
    assert "66.7%" in answers_markdown(results)


def test_what_can_not_be_asked_is_named(models, tmp_path):
    with pytest.raises(DataError, match=r"in.jsonl, line 2: the assistant says nothing"):
        evaluate_answers(["x"], conversations(tmp_path / "in.jsonl", ("a", "b"), ("c", "")))
    with pytest.raises(DataError, match=r"conversation 1 is .* leaves none of the context of before"):
        evaluate_answers(["x"], conversations(tmp_path / "in.jsonl", ("a" * 50, "b")))
    with pytest.raises(DataError, match="can't be read as answers"):
        read_answers(tmp_path)
