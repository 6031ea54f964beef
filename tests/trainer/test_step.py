"""One step: its numbers don't depend on how it is cut, and nothing reaches the weights before it is applied."""

import math

import pytest

from megatron_sky.config import dump_config
from tests.recipes import config_of


def steps_of_one_rank(info, config_text: str) -> dict:
    """What a rank's runner does with eight samples: cut in two ways, evaluated, applied, forgotten."""

    import torch

    from megatron_sky.data.loader import TrainData
    from megatron_sky.data.sampling.mixture import SessionMixture
    from megatron_sky.data.tokens.sources import open_source
    from megatron_sky.distributed.context import open_context
    from megatron_sky.trainer.build import build_runner

    config = config_of(config_text)
    model = config.model
    sources = [open_source(source.path, vocab_size=model.vocab_size) for source in config.data.train]
    data = TrainData(
        config.data,
        sources,
        seq_length=model.seq_length,
        vocab_size=model.vocab_size,
        sessions=[SessionMixture(0, 320)],
    )
    beats: list[str] = []
    with open_context(config.parallel, info) as context:
        runner = build_runner(config, context=context, beat=beats.append, draws_weights=True)

        def weights() -> torch.Tensor:
            return torch.cat([p.detach().flatten() for chunk in runner.model.chunks for p in chunk.parameters()])

        def computed(cut: int):
            batches = [data.read(list(range(first, first + cut))) for first in range(0, 8, cut)]
            runner.micro_batch_size = cut
            return runner.compute(batches, num_microbatches=len(batches), step=0)

        before = weights()
        results = [computed(cut) for cut in (1, 2, 8)]
        their_norm = float(runner.optimizer.get_grad_norm())
        batches = [data.read([number]) for number in range(8)]
        evaluated = runner.evaluate(batches, num_microbatches=8, micro_batch_size=1)
        facts = {
            "results": [(result.lm_loss, result.grad_norm) for result in results],
            "their_norm": their_norm,
            "evaluated": evaluated.loss_sum / evaluated.count,
            "tokens": evaluated.count,
            "untouched": torch.equal(before, weights()),
            "beats": set(beats),
            "seconds": runner.sync_seconds,
            "updated": runner.apply(results[-1], lr=1e-2),
        }
        after = weights()
        facts["moved"] = (after - before).abs().max().item()
        overflow = type(results[0])(results[0].lm_loss, None)
        facts["overflow"] = (runner.apply(overflow, lr=1e-2), torch.equal(after, weights()))
        runner.forget_moments()
        runner.model.release()
    return facts


def test_a_step(ranks, recipe):
    (facts,) = ranks(1, steps_of_one_rank, dump_config(recipe()))
    losses, norms = zip(*facts["results"], strict=True)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5) and norms[1:] == pytest.approx(
        [norms[0]] * 2, rel=1e-4
    )
    assert norms[-1] == facts["their_norm"], "megatron-core's own, to the last bit"
    assert facts["evaluated"] == pytest.approx(losses[0], rel=1e-5) and facts["tokens"] == 8 * 32
    assert losses[0] == pytest.approx(math.log(700), rel=0.1), "a new model knows nothing"
    assert facts["untouched"], "computing and evaluating change no weight"
    assert facts["updated"] and 0 < facts["moved"] < 0.1 and facts["overflow"] == (False, True)
    assert "forward and backward" in facts["beats"], "the watchdog hears of each micro batch"
    assert facts["seconds"] >= 0
