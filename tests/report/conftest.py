"""A small run folder, made by the writer that real runs use."""

import pytest

from megatron_sky.monitor.metrics import MetricsWriter, TrainRecord, ValidationRecord


@pytest.fixture(scope="session")
def write_run():
    """The function `write_run(run_dir, losses=..., sets=..., events=...)`, which returns the folder."""

    def write(run_dir, *, losses=(4.0, 3.0, 2.0), sets=("code",), events=()):
        with MetricsWriter(run_dir, tensorboard=False, wandb=None, config={}) as metrics:
            for name, fields in events:
                metrics.event(name, **fields)
            for step, loss in enumerate(losses, 1):
                metrics.train(
                    TrainRecord(
                        step=step,
                        consumed_samples=8 * step,
                        consumed_tokens=1000 * step,
                        lm_loss=loss,
                        lr=1e-3,
                        grad_norm=1.0,
                        global_batch_size=8,
                        step_seconds=2.0,
                        tokens_per_second=500.0 * step,
                        tokens_per_second_per_gpu=250.0 * step,
                        tflops_per_gpu=0.5,
                    )
                )
            for step in (0, len(losses)):
                for name in sets:
                    metrics.validation(
                        ValidationRecord(
                            step=step, consumed_tokens=1000 * step, set=name, lm_loss=9.0 - step, tokens=64, seconds=0.1
                        )
                    )
        return run_dir

    return write
