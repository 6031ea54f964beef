"""A Hugging Face folder run by transformers: losses of every place, and nothing made up."""

from types import SimpleNamespace

import pytest
import torch

from megatron_sky.errors import CheckpointError
from megatron_sky.inference.hf_model import HfModel, load_folder, load_model
from tests.convert.huggingface.conftest import llama  # noqa: F401

pytest.importorskip("transformers")
CONTEXT = SimpleNamespace(device=torch.device("cpu"), rank=1, world_size=3)


def test_losses_and_logits_at_flat_places(llama):  # noqa: F811
    folder = llama()
    model, reference = HfModel(load_folder(folder, CONTEXT.device), CONTEXT), load_model(folder, torch.float32)
    assert (model.share, model.shares, model.answers) == (1, 3, True)
    tokens = torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    places, targets = torch.tensor([0, 4, 7, 11]), torch.tensor([1, 2, 3, 4])
    with torch.inference_mode():
        logits = reference(input_ids=tokens).logits.flatten(0, 1)[places]
        losses, likeliest = model.losses(tokens, places, targets)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    assert likeliest.tolist() == (logits.argmax(-1) == targets).tolist()


def test_padding_on_the_right_changes_nothing(llama):  # noqa: F811
    model = HfModel(load_folder(llama(), CONTEXT.device), CONTEXT)
    short = torch.tensor([[5, 6, 7]])
    long = torch.cat([short, torch.zeros(1, 5, dtype=torch.long)], 1)
    places = targets = torch.tensor([0, 1, 2])
    with torch.inference_mode():
        torch.testing.assert_close(model.losses(short, places, targets), model.losses(long, places, targets))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.* is missing"),
        ({"intermediate_size": 32}, "has (another shape|the shape)"),
        ({"model_type": "no_such_model"}, "transformers can't load it"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(changes, message, llama):  # noqa: F811
    with pytest.raises(CheckpointError, match=message):
        load_model(llama(**changes), torch.float32)
