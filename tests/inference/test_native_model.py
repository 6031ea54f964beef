"""A native checkpoint run by megatron-core: losses and logits of the same numbers, in whatever layout."""

import pytest

from tests.convert.conftest import native  # noqa: F401


def asked(info, folder: str, parallel: dict) -> dict | None:
    """Losses, and logits where the whole model is on one rank, of some places of two texts."""
    from pathlib import Path

    import torch

    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.inference import native_model

    with open_context(ParallelConfig(distributed_optimizer=False, **parallel), info) as context:
        model = native_model.NativeModel(Path(folder), context)
        tokens = torch.arange(12).reshape(2, 6) * 7 % 500
        places, targets = torch.tensor([0, 5, 6, 8, 11]), torch.tensor([1, 699, 3, 4, 5])
        with torch.inference_mode():
            answer = model.losses(tokens, places, targets)
            found = {"answers": model.answers, "losses": None if answer is None else answer[0].tolist()}
            if not parallel:
                hidden = model._hidden(tokens)[native_model._sequence_first(places, tokens)]
                logits = model._logits(hidden).float()
                assert logits[:, 700:].max() == -torch.inf, "padding rows are no tokens"
                found["by logits"] = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
                padded = torch.cat([tokens, torch.full((2, 3), 9)], 1)
                moved = torch.tensor([0, 5, 9, 11, 14])
                found["padded"] = model.losses(padded, moved, targets)[0].tolist()
        return found


@pytest.fixture
def alone(native, ranks) -> dict:  # noqa: F811
    (found,) = ranks(1, asked, str(native("tp2")), {})
    return found


def test_losses_are_those_of_the_logits_without_padding_rows(alone):
    assert alone["answers"]
    assert alone["losses"] == pytest.approx(alone["by logits"], rel=1e-4)
    assert alone["padded"] == pytest.approx(alone["losses"], rel=1e-4), "a causal model does not look to the right"


@pytest.mark.parametrize(("parallel", "answering"), [({"tp_size": 2}, [True, False]), ({"pp_size": 2}, [False, True])])
def test_a_split_model_gives_the_same(parallel, answering, alone, native, ranks):  # noqa: F811
    results = ranks(2, asked, str(native("tp2")), parallel)
    assert [result["answers"] for result in results] == answering
    for result, answers in zip(results, answering, strict=True):
        if answers:
            assert result["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    if "pp_size" in parallel:
        assert results[0]["losses"] is None, "an earlier stage hands its states on"
