"""What goes before a document: as the model's training had it."""

import json
import shutil

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.evaluate.results import read_loss
from megatron_sky.inference.checkpoints import open_checkpoint
from tests.convert.conftest import hf, native
from tests.evaluate import workers
from tests.tokenizer.test_to_huggingface import with_begin

__all__ = ["hf", "native"]
pytest.importorskip("transformers")


def begin_of(folder) -> int:
    return open_checkpoint(folder).coder.begin_id("auto")


@pytest.fixture
def llama_like(hf, tmp_path):
    shutil.copytree(hf("tp2"), tmp_path / "hf")
    with_begin(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.slow
def test_a_converted_checkpoint_is_evaluated_as_the_folder_it_came_from(llama_like, corpus, ranks, tmp_path):
    native = write_native(open_source(llama_like), tmp_path / "native").folder
    assert begin_of(llama_like) == begin_of(native) == 1
    lines = (corpus / "text/test/en_web.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    (tmp_path / "en.jsonl").write_text("\n".join(lines), encoding="utf-8")
    models, data = [f"hf={llama_like}", f"native={native}"], [f"en={tmp_path / 'en.jsonl'}"]
    assert ranks(1, workers.loss, models, data, str(tmp_path / "out")) == [None]
    one, other = read_loss(tmp_path / "out").models
    assert one.average.perplexity == pytest.approx(other.average.perplexity, rel=1e-5)


def test_a_folder_without_settings_is_taken_at_its_templates_word(llama_like):
    (llama_like / "tokenizer_config.json").unlink()
    (llama_like / "tokenizer.model").unlink()
    assert begin_of(llama_like) == 1


def test_what_was_trained_here_begins_after_the_end_of_a_document(native, llama_like, tmp_path):
    """Whatever the settings beside the tokenizer that it was trained with say."""
    trained = tmp_path / "step_0000002"
    shutil.copytree(native("tp2"), trained)
    (trained / "tokenizer.model").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_like / name, trained)
    manifest = json.loads((trained / store.MANIFEST).read_text())
    del manifest["files"]["tokenizer.model"]
    (trained / store.MANIFEST).write_text(json.dumps(manifest))
    assert begin_of(trained) == begin_of(native("tp2")) == 2
