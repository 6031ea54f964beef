"""Records a small checkpoint, to be read by another megatron-core: `python -m tests.checkpoint.record FOLDER`.

The folder gets a checkpoint of one process after one update, and digest.json with what it must hold.
"""

import json
import shutil
import sys
from pathlib import Path

from megatron_sky.config.schema import Config

RECORDED = Path(__file__).parent / "recorded"


def small(run_dir: str) -> Config:
    return Config(
        model={
            "vocab_size": 64,
            "vocab_multiple": 64,
            "hidden_size": 16,
            "ffn_hidden_size": 32,
            "num_layers": 2,
            "num_attention_heads": 2,
            "seq_length": 16,
        },
        precision={"dtype": "bf16"},
        schedule={"lr": 1e-2},
        train={"run_dir": run_dir, "tokens": 16, "global_batch_size": 1},
        checkpoint={"async_save": False},
    )


def opened(config: Config):
    """(context manager of a lone rank's context, function that builds model and optimizer in it)."""
    from megatron_sky.distributed.context import open_context
    from megatron_sky.distributed.launch import RankInfo
    from megatron_sky.model.build import build_model
    from megatron_sky.optim.build import build_optimizer

    sections = {"parallel": config.parallel, "precision": config.precision}

    def build(context):
        context.seed_step(1, 0)
        model = build_model(config.model, **sections, train=config.train, context=context)
        optimizer = build_optimizer(config.optimizer, schedule=config.schedule, **sections, chunks=model.chunks)
        return model, optimizer

    return open_context(config.parallel, RankInfo()), build


def digest(model, optimizer) -> dict[str, float]:
    """The sum of every weight, and of the optimizer's masters and moments."""
    found = {name: each.double().sum().item() for name, each in model.chunks[0].named_parameters()}
    for group in optimizer.optimizer.param_groups:
        for number, master in enumerate(group["params"]):
            state = optimizer.optimizer.state[master]
            for name, tensor in {"master": master, **state}.items():
                if hasattr(tensor, "double"):
                    key = f"{group['wd_mult']}/{number}/{name}"
                    found[key] = tensor.detach().double().sum().item()
    return found


def record(folder: Path) -> None:
    """Writes the checkpoint and its digest into `folder`."""
    import torch

    from megatron_sky.checkpoint.saver import Saver

    config = small(str(folder / "run"))
    entered, build = opened(config)
    with entered as context:
        model, optimizer = build(context)
        generator = torch.Generator().manual_seed(5)
        for parameter in model.chunks[0].parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
        assert optimizer.step()[0]
        saver = Saver(
            folder / "run",
            config=config,
            context=context,
            chunks=model.chunks,
            optimizer=optimizer,
            fingerprint=dict,
        )
        (ended,) = saver.start({"step": 1, "consumed_samples": 1, "consumed_tokens": 16})
        assert ended.failure is None, ended.failure
        (folder / "digest.json").write_text(json.dumps(digest(model, optimizer), indent=1) + "\n")
    ended.folder.rename(folder / "checkpoint")
    shutil.rmtree(folder / "run")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
