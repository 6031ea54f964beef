"""Adapters merged into a model and exported: the same logits from ours, transformers and peft."""

import json

import numpy as np
import pytest

from megatron_sky.checkpoint.description import read_description
from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32
from megatron_sky.convert.adapters import _bits, _with_new_rows, check_merge, write_peft
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.trainer.finetuning import LORA, settings, train_base, write_samples
from tests.trainer.test_parity import run_training


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict:
    return {"folder": tmp_path_factory.mktemp("merging")}


@pytest.fixture
def tuned(kept, ranks, recipe, corpus):
    """(base's folder, adapters' checkpoint, the run's last validation loss, the samples' folder), made once.

    Without rows that pad the vocabulary: they take part in the run's softmax, and a Hugging Face folder has none.
    """
    from megatron_sky.config import dump_config

    folder = kept["folder"]
    if "run" not in kept:
        write_samples(folder, corpus / "tokenizer.model")
        exact = ["model.vocab_size=703", "model.vocab_multiple=1"]
        train_base(ranks, recipe, folder / "base", *exact, "tokenizer.path=null")  # the corpus's has 700
        config = recipe(*settings(folder, folder / "base", folder / "lora"), *exact, *LORA)
        numbers = ranks(1, run_training, dump_config(config))[0]
        kept["run"] = open_source(folder / "base").folder, next((folder / "lora/checkpoints").iterdir()), numbers[-1][0]
    return *kept["run"], folder


def test_rounding_to_the_weights_format():
    values = np.array([1.0, 1 / 3, -2.5e-3], np.float32)
    assert (_bits(values, "F32").view(np.float32) == values).all()
    assert np.abs(as_float32(_bits(values, "BF16"), "BF16") - values).max() < 2e-3


def test_new_tokens_have_the_mean_of_the_rows():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    tensor = LazyTensor("F32", (4, 3), lambda: values.view(np.uint32), "here")
    rows = _with_new_rows(tensor, 2, 3).load().view(np.float32)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [1.5, 2.5, 3.5], [9, 10, 11]]


def test_what_is_asked_must_be_there(tuned, tmp_path):
    base, adapters, *_ = tuned
    with pytest.raises(CheckpointError, match="holds adapters alone"):
        check_merge(adapters, merge=False)
    with pytest.raises(CheckpointError, match="holds no adapters to merge"):
        check_merge(base, merge=True)
    with pytest.raises(CheckpointError, match="holds no adapters"):
        write_peft(base, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"is another \("):
        open_source(adapters, base=adapters)
    with pytest.raises(CheckpointError, match="give its folder with --base"):
        open_source(adapters, base=tmp_path)


def test_a_text_is_generated_with_adapters_on_their_base_wherever_it_lies(tuned, tmp_path):
    torch = pytest.importorskip("torch")
    from megatron_sky.generation.load import load_for_generation
    from megatron_sky.inference.checkpoints import open_checkpoint

    base, adapters, loss, samples = tuned
    moved = base.rename(tmp_path / "moved")
    try:
        with pytest.raises(CheckpointError, match="give its folder with --base"):
            load_for_generation(open_checkpoint(adapters), torch.device("cpu"))
        with pytest.raises(CheckpointError, match="holds no adapters, which --base is for"):
            open_checkpoint(moved, base=moved)
        model, _ = load_for_generation(open_checkpoint(adapters, base=moved), torch.device("cpu"))
    finally:
        moved.rename(base)
    assert abs(_answer_loss(model, samples / "held_out") - loss) <= 1e-5


@pytest.mark.slow
def test_merged_and_exported_adapters_compute_what_the_run_did(tuned, tmp_path):
    """The run's validation loss, by transformers on the merged model, row by row of the packed file, and by peft."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from megatron_sky.convert.huggingface.folder import write_hf

    _, adapters, loss, samples = tuned
    source = open_source(adapters)
    write_hf(source, tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert abs(_answer_loss(model, samples / "held_out") - loss) <= 1e-5
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["vocab_size"] == read_description(adapters).config.model.vocab_size


def _answer_loss(model, prefix) -> float:
    """transformers' mean loss over answers' tokens, each sample by itself."""
    import torch

    from megatron_sky.data.tokens.indexed import IndexedTokens
    from megatron_sky.data.tokens.mask import ANSWER, TokenMask

    total, count, mask = 0.0, 0, TokenMask(prefix)
    with IndexedTokens(prefix) as pair, torch.no_grad():
        for number in range(pair.num_documents):
            ids = torch.tensor(pair.document(number).astype(np.int64))[None]
            flags = mask.read(pair.document_offset(number), ids.shape[1]) == ANSWER
            labels = torch.where(torch.tensor(flags)[None], ids, -100)
            total += model(ids, labels=labels).loss.item() * int(flags.sum())
            count += int(flags.sum())
    return total / count


@pytest.mark.slow
def test_peft_loads_the_export(tuned, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from megatron_sky.convert.huggingface.folder import write_hf

    base, adapters, loss, samples = tuned
    write_hf(open_source(base), tmp_path / "base")
    count = write_peft(adapters, tmp_path / "peft", base_model=str(tmp_path / "base"))
    assert count > 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tuned_model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    assert abs(_answer_loss(tuned_model, samples / "held_out") - loss) <= 1e-5
