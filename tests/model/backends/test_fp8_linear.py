"""The scales of a model's 8-bit linears: which linears have one, and what a step leaves of them."""

import pytest

from megatron_sky.config import dump_config
from tests.recipes import config_of


def scaled(info, config_text: str) -> dict:

    import torch

    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model

    config = config_of(config_text)
    with open_context(config.parallel, info) as context:
        context.seed_step(1, 0)
        built = build_model(
            config.model, parallel=config.parallel, precision=config.precision, train=config.train, context=context
        )
        scaling = built.fp8
        tokens = torch.arange(32)[None]
        scaling.begin_pass()
        for chunk in built.chunks:
            chunk(tokens, tokens, None, labels=tokens).float().sum().backward()
        held = [linear._weight is not None for linear in scaling._linears]
        facts = {"linears": len(scaling._linears), "held": all(held), "kind": scaling.kind}
        scaling.end_step(context.stage_group)
        scaling.begin_pass()
        facts["forgotten"] = not any(linear._weight is not None for linear in scaling._linears)
        if scaling.amax is not None:
            histories = {str(number): history.clone() for number, history in scaling.history_by_layer().items()}
            facts["seen"] = [float(history.max()) > 0 for history in histories.values()]
            scaling.restore(None)
            facts["anew"] = [float(history.max()) for history in scaling.history_by_layer().values()]
            scaling.restore(histories)
            facts["back"] = all(
                torch.equal(histories[str(number)], history) for number, history in scaling.history_by_layer().items()
            )
        built.release()
    return facts


def facts_of(ranks, recipe, fp8: str) -> dict:
    overrides = ["precision.dtype=bf16", f"precision.fp8={fp8}", "train.micro_batch_size=1", "model.vocab_size=700"]
    (facts,) = ranks(1, scaled, dump_config(recipe(*overrides)))
    return facts


def test_delayed_scales_have_a_history_that_is_saved_and_comes_back(ranks, recipe):
    facts = facts_of(ranks, recipe, "{recipe: delayed, amax_history_len: 4}")
    assert facts["linears"] == 16 and facts["held"] and facts["forgotten"], "four a layer, cast once a step"
    assert facts["kind"] == {"amax_history_len": 4, "first_last_layers_bf16": False}
    assert facts["seen"] == [True] * 4 and facts["anew"] == [0.0] * 4 and facts["back"]


@pytest.mark.parametrize(
    ("fp8", "linears"), [("tensorwise", 16), ("{recipe: tensorwise, first_last_layers_bf16: true}", 8)]
)
def test_scales_that_are_measured_have_none(fp8, linears, ranks, recipe):
    facts = facts_of(ranks, recipe, fp8)
    assert facts["linears"] == linears and facts["kind"] is None and facts["forgotten"]
