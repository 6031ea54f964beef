"""Text from checkpoints: with every kind of tokenizer, of every backend, up to the context length, which is told."""

import base64
import json
import logging
import shutil
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.config import dump_config, load_config
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.sources import open_source
from megatron_sky.data.ingest.tokenize import tokenize_jsonl
from megatron_sky.errors import ConfigError
from megatron_sky.tokenizer.kinds import load_tokenizer
from megatron_sky.tokenizer.to_huggingface import to_tokenizers
from tests.conftest import SEQ_LENGTH
from tests.convert import workers as training
from tests.convert.conftest import native
from tests.evaluate import workers as evaluation
from tests.trainer.test_parity import run_training

__all__ = ["native"]
GPU_SETTINGS = sorted((Path(__file__).parents[2] / "examples/skywork_13b").glob("gpu_*.yaml"))


def generated(info, checkpoint: str, prompt: str) -> str:
    from megatron_sky.generation.run import generate_texts
    from megatron_sky.generation.sampling import Sampling

    return generate_texts(Path(checkpoint), [prompt], Sampling(max_new_tokens=3))[0]


def evaluated(ranks, checkpoint: Path, texts: Path, out: Path) -> dict:
    """loss.json's record of the model."""
    assert ranks(1, evaluation.loss, [str(checkpoint)], [f"en={texts}"], str(out)) == [None]
    return json.loads((out / "loss.json").read_text())["models"][0]["model"]


def english(corpus: Path) -> Path:
    return min((corpus / "text").rglob("*en_web*.jsonl"), key=lambda each: each.stat().st_size)


def as_tokenizer_json(model: Path, folder: Path) -> Path:
    pytest.importorskip("tokenizers")
    to_tokenizers(load_tokenizer(model)).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def as_named_json(model: Path, folder: Path) -> Path:
    return as_tokenizer_json(model, folder).rename(folder / "mine.json")


def as_folder_of_json(model: Path, folder: Path) -> Path:
    return as_tokenizer_json(model, folder).parent


def as_folder_of_model(model: Path, folder: Path) -> Path:
    return Path(shutil.copy(model, folder / "tokenizer.model")).parent


def as_ranks(model: Path, folder: Path) -> Path:
    """Bytes and pairs of letters, by gigatoken."""
    pytest.importorskip("gigatoken")
    tokens = [bytes([each]) for each in range(256)] + [a.encode() + b"e" for a in "rhtds"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "own.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    settings = {"pretokenizer": "gpt2", "special_tokens": {"<|endoftext|>": len(tokens)}}
    (folder / "own.tiktoken.json").write_text(json.dumps(settings))
    return folder / "own.tiktoken"


@pytest.mark.parametrize("kind", [as_tokenizer_json, as_named_json, as_folder_of_json, as_folder_of_model, as_ranks])
def test_every_kind_of_tokenizer_goes_with_the_checkpoint(kind, recipe, corpus, ranks, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    path = kind(corpus / "tokenizer.model", tmp_path / "tokenizer")
    tokenizer = load_tokenizer(path)
    texts = english(corpus)
    tokenize_jsonl([texts], tmp_path / "tokens", tokenizer)
    config = recipe(
        f"tokenizer.path={path}",
        f"model.vocab_size={tokenizer.vocab_size}",
        f"data.train=[{{name: en_web, path: {tmp_path / 'tokens'}, weight: 1}}]",
        "data.max_epochs=99",
        "validation.sets=[]",
        "train.max_steps=2",
    )
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    ranks(1, training.train, str(tmp_path / "resolved.yaml"))
    shutil.rmtree(tmp_path / "tokenizer")  # what is in the checkpoint must do

    (checkpoint,) = (Path(config.train.run_dir) / "checkpoints").iterdir()
    (text,) = ranks(1, generated, str(checkpoint), "The river")
    assert text.startswith("The river")
    assert evaluated(ranks, checkpoint, texts, tmp_path / "out")["tokenizer_sha256"] == tokenizer.sha256
    exported = write_hf(open_source(checkpoint), tmp_path / "hf").folder
    assert load_tokenizer(exported).encode("The river") == tokenizer.encode("The river")


@pytest.mark.parametrize("settings", GPU_SETTINGS, ids=lambda each: each.stem)
def test_a_checkpoint_of_a_gpu_is_heard_and_evaluated_on_a_cpu(settings, native, corpus, ranks, tmp_path):
    checkpoint = Path(shutil.copytree(native("one"), tmp_path / "step_0000002"))
    config = load_config([checkpoint / "config.yaml", settings])
    (checkpoint / "config.yaml").write_text(dump_config(config))
    manifest = json.loads((checkpoint / store.MANIFEST).read_text())
    manifest["files"] |= {"config.yaml": store.hash_files(checkpoint, ["config.yaml"])["config.yaml"].to_dict()}
    (checkpoint / store.MANIFEST).write_text(json.dumps(manifest))
    (text,) = ranks(1, generated, str(checkpoint), "The river")
    assert text.startswith("The river")
    assert evaluated(ranks, checkpoint, english(corpus), tmp_path / "out")["kind"] == "native"


def texts(info, run_dir: str, prompts: list[str], max_tokens: int):
    """The texts and what was logged, or the ConfigError's text."""
    from megatron_sky.generation import run
    from megatron_sky.generation.sampling import Sampling

    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    run.log.addHandler(handler)
    try:
        return run.generate_texts(Path(run_dir), prompts, Sampling(max_new_tokens=max_tokens)), told
    except ConfigError as error:
        return str(error), told
    finally:
        run.log.removeHandler(handler)


@pytest.fixture
def heard(ranks, recipe):
    config = recipe("train.max_steps=2")
    ranks(1, run_training, dump_config(config))
    return lambda prompts, max_tokens=4: ranks(1, texts, config.train.run_dir, prompts, max_tokens)[0]


def test_prompts_longer_than_the_context_are_refused_together(heard):
    said, _ = heard(["a" * 200, "short", "清晨" * 100])
    assert "prompt 1 = 'aaa" in said and "prompt 3 = '清晨" in said and "prompt 2" not in said
    assert f"context length ({SEQ_LENGTH} tokens)" in said and f"at most {SEQ_LENGTH - 1} tokens" in said


def test_a_continuation_that_the_context_ends_is_told(heard):
    short, told = heard(["The reader"])
    assert short[0].startswith("The reader") and not told
    _, told = heard(["The reader"], 2 * SEQ_LENGTH)
    assert "ends at the context length" in told[-1]


def texts_of_both(info, native_folder: str, hf_folder: str, prompts: list[str]) -> list[list[str]]:
    from megatron_sky.generation.run import generate_texts
    from megatron_sky.generation.sampling import Sampling

    return [generate_texts(Path(folder), prompts, Sampling(max_new_tokens=6)) for folder in (native_folder, hf_folder)]


def test_a_hugging_face_folder_is_continued_like_the_checkpoint_it_came_from(native, ranks, tmp_path):
    pytest.importorskip("transformers")
    exported = write_hf(open_source(native("one")), tmp_path / "hf").folder
    prompts = ["The river", "清晨", ""]
    ours, theirs = ranks(1, texts_of_both, str(native("one")), str(exported), prompts)[0]
    assert ours == theirs and all(text.startswith(prompt) for text, prompt in zip(ours, prompts, strict=True))


def generated_while_deleted(info, given: str, doomed: str, prompt: str, kept: str | None) -> tuple[str, str]:
    """(the text, what was warned of) where training deletes `doomed` while its weights are read; `kept`: where the
    checkpoint lies that is saved meanwhile."""
    from unittest import mock

    from megatron_sky.errors import CheckpointError
    from megatron_sky.generation import load
    from megatron_sky.inference import checkpoints

    opening, told = load.open_source, []

    def delete_first(folder, **options):
        if folder == Path(doomed):
            if kept is not None:
                shutil.move(kept, folder.with_name("step_0000004"))
            shutil.rmtree(folder)
        return opening(folder, **options)

    warned = mock.patch.object(checkpoints.log, "warning", lambda text, *values: told.append(text % values))
    with mock.patch.object(load, "open_source", delete_first), warned:
        try:
            return generated(info, given, prompt), told[0]
        except CheckpointError as error:
            return type(error).__name__, str(error)


def test_a_checkpoint_that_training_deletes_meanwhile(ranks, recipe, tmp_path):
    ranks(1, run_training, dump_config(recipe("train.max_steps=4", "checkpoint.interval=2 steps")))
    run = Path(recipe().train.run_dir)
    older, newer = (store.folder_of(run, step) for step in (2, 4))
    (expected,) = ranks(1, generated, str(newer), "The river")
    shutil.copytree(older, tmp_path / "older")
    shutil.move(newer, tmp_path / "newer")
    given = (str(run), str(older), "The river", str(tmp_path / "newer"))
    assert ranks(1, generated_while_deleted, *given) == [
        (expected, f"{older} was deleted while it was read; taking step_0000004")
    ]
    shutil.copytree(tmp_path / "older", older)
    ((kind, message),) = ranks(1, generated_while_deleted, str(older), str(older), "The river", None)
    assert kind == "Deleted" and f"{older}: was deleted while it was read" in message and "fix:" in message
