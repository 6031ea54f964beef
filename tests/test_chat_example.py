"""The example `chat`: its data are split and can be learnt, its recipes run, and its check tells what is lacking."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.config import dump_config, load_config
from megatron_sky.data.chat.build import ChatOptions, write_chat
from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.tokenizer.chat_template import template_beside
from megatron_sky.tokenizer.kinds import load_tokenizer
from tests.trainer.test_parity import run_training

EXAMPLES = Path(__file__).parents[1] / "examples"
CHAT = EXAMPLES / "chat"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    subprocess.run([sys.executable, CHAT / "make_data.py", folder / "data"], check=True, timeout=60)
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_held_out_question_is_trained_on(data):
    train, held_out = (read(data / f"data/{name}.jsonl") for name in ("train", "held_out"))
    asked = {record["instruction"] for record in train}
    assert len(train) > 800 and len(held_out) > 150
    assert not asked & {record["instruction"] for record in held_out}
    assert {record["output"] for record in held_out} <= {record["output"] for record in train}
    assert all(pair["chosen"] != pair["rejected"] for pair in read(data / "data/train_pairs.jsonl"))


@pytest.mark.slow
def test_its_recipes_run(data, corpus, ranks, monkeypatch):
    """Two steps of each, on a base of one."""
    monkeypatch.setenv("CHAT", str(data))
    (data / "tokenizer.model").write_bytes((corpus / "tokenizer.model").read_bytes())
    (data / "chat_template.jinja").write_bytes((CHAT / "chat_template.jinja").read_bytes())
    tokenizer, template = load_tokenizer(data / "tokenizer.model"), template_beside(data)
    for name in ("train", "held_out", "train_pairs", "held_out_pairs"):
        options = ChatOptions(128, pairs=name.endswith("pairs"))
        write_chat([data / f"data/{name}.jsonl"], data / "tokens" / name, tokenizer, template, options)
    model, tuned = EXAMPLES / "quickstart/model.yaml", CHAT / "finetune.yaml"
    short = [
        "model.vocab_size=700",
        "train.max_steps=2",
        "schedule.warmup_tokens=0",
        "validation.max_sequences=8",
        "validation.micro_batch_size=4",
    ]
    base = ["finetune=null", "validation.sets=[]", "train.tokens=10k", f"train.run_dir={data / 'quickstart/run'}"]
    for recipe, more in (
        ([model, tuned], base),
        ([model, tuned], []),
        ([model, tuned, CHAT / "lora.yaml"], []),
        ([model, tuned, CHAT / "dpo.yaml"], []),
    ):
        config = load_config(recipe, [*short, *more])
        ranks(1, run_training, dump_config(config).replace("${CHAT:-runs/chat}", str(data)))  # ranks have no CHAT
    assert read_metrics(data / "dpo").validation[-1].preference is not None
    checkpoint = next((data / "lora/checkpoints").glob("step_*"))
    assert template_beside(checkpoint) is not None, "a template beside the tokenizer goes along"


def test_the_check_says_what_did_not_come_out(tmp_path):
    from megatron_sky.evaluate.answers import AnswerResults, AnswerScore, write_answers

    spec = importlib.util.spec_from_file_location("check", CHAT / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    for run, exact in (("full", 95), ("lora", 89), ("dpo", 90)):
        scores = [AnswerScore("before", 1, 1, 0), AnswerScore(run, 1, 1, exact)]
        write_answers(AnswerResults("answers", 1, ["a"], 100, scores, []), tmp_path / run / "eval")
    assert [holds for _, holds in check.answer_findings(tmp_path)] == [True, False, True]
